//! What a credential and a task cost among many profiles, of which one is the caller's.

use std::{fmt::Write as _, path::Path};

use mayfly_proto::mayfly::v1::{holder_wish::Holder, wish::Wish as Of};

use crate::{
    broker::{self, Broker, batch, float},
    growing::growing,
    guests::Guest,
    measure::{Fault, count, say},
    powers,
};

/// Calls and tasks that are measured at each number.
const CALLS: usize = 300;
/// Users that are nobody here.
const FIRST_UID: usize = 4_000_000_000;

fn configuration(profiles: usize) -> Result<String, Fault> {
    let mut text = "trust_domain = \"example.org\"\n".to_owned();
    for number in 1..profiles {
        let uid = FIRST_UID + number;
        write!(
            text,
            "\n[[profile]]\nname = \"p{number}\"\npath = \"/p/{number}\"\nowner = \"bench\"\n\
             selectors = [\"unix:uid:{uid}\"]\nbinding = \"process\"\n"
        )?;
    }
    // The last, so that whoever looks for it one by one looks at all of them.
    text.push_str(
        "\n[[profile]]\nname = \"guest\"\npath = \"/guest\"\nowner = \"bench\"\nselectors = []\n\
         binding = \"socket\"\n",
    );
    Ok(text)
}

pub(crate) async fn measure(dir: &Path) -> Result<Vec<(&'static str, f64)>, Fault> {
    let most = count("MAYFLY_BENCH_PROFILES", (10, 10_000))?;
    let (mut fetches, mut lives, mut starts) = (Vec::new(), Vec::new(), Vec::new());
    for profiles in powers(1, most) {
        let began = mayfly::clock::monotonic_ns();
        let broker =
            Broker::open(&dir.join(format!("p{profiles}")), &configuration(profiles)?).await?;
        let started = broker::seconds(mayfly::clock::monotonic_ns() - began);
        broker.quiet().await?;
        let tasks = broker.tasks().await?;
        let guests = Guest::begin(&tasks, ("guest", 1)).await?;
        let guest = guests.first().ok_or("no guest")?;
        guest.token().await?;
        let before = broker.cpu_s()?;
        for _ in 0..CALLS {
            guest.token().await?;
        }
        let fetch = (broker.cpu_s()? - before) * 1e3 / float(CALLS);
        let key = |of: usize| format!("life-{of}");
        let wish = |of| Of::Begin(broker::begin("guest", Holder::Socket(true), key(of)));
        let before = broker.cpu_s()?;
        batch(&tasks, (0..CALLS).map(wish).collect()).await?;
        let life = (broker.cpu_s()? - before) * 1e3 / float(CALLS);
        broker.close().await?;
        say(&format!(
            "{profiles:>6} profiles: a token {fetch:.3} ms, a begin {life:.3} ms of the broker; start {started:.2} s"
        ));
        fetches.push((float(profiles), fetch));
        lives.push((float(profiles), life));
        starts.push((float(profiles), started));
    }
    let fetch = growing("fetch_by_profiles", ("profiles", "ms of the broker"), &fetches);
    growing("begin_by_profiles", ("profiles", "ms of the broker"), &lives);
    growing("start_by_profiles", ("profiles", "s"), &starts);
    Ok(vec![("fetch_by_profiles_exponent", fetch), ("fetch_profiles_ratio", ratio(&fetches))])
}

/// The last cost to the first.
pub(crate) fn ratio(points: &[(f64, f64)]) -> f64 {
    let (first, last) = (points.first(), points.last());
    first.zip(last).map_or(f64::NAN, |((_, first), (_, last))| last / first)
}
