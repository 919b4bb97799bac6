//! Two servers, by turns, so that whatever the machine goes through is gone through by both.

use std::{sync::Arc, time::Duration};

use nix::unistd::Pid;

use crate::{
    drive::{self, Call},
    measure::{Fault, count, is_quick, quantile, say},
    meter::{Cost, Meter},
    words::{Words, word},
};

/// How the loops are run.
pub(crate) struct Loops {
    pub(crate) in_flight: usize,
    pub(crate) is_short: bool,
    lasting: Duration,
    rounds: usize,
    /// Calls one after the other in each round: ours, and the rival's.
    alone: (usize, usize),
}

impl Loops {
    pub(crate) fn new(words: &Words) -> Result<Self, Fault> {
        let is_short = is_quick();
        let alone = if is_short { 20 } else { 200 };
        Ok(Self {
            in_flight: words.in_flight,
            is_short,
            // A round is half as long as a loop of `load`: there are several of them, on both sides.
            lasting: words.lasting / 2,
            rounds: count("MAYFLY_BENCH_ROUNDS", (1, 3))?,
            alone: (alone, alone),
        })
    }

    /// The same against somebody whose calls take seconds: how long one takes alone is measured elsewhere.
    pub(crate) const fn against_slow(&self) -> Self {
        Self { alone: (self.alone.0, 0), ..*self }
    }
}

/// The processes that a server is made of; none if nobody said which they are.
#[derive(Clone)]
pub(crate) struct Server(Vec<Meter>);

impl Server {
    pub(crate) fn new(pid: Pid) -> Self {
        Self(vec![Meter::new(Some(pid))])
    }

    /// As the command line says after `flag`, with commas between them.
    pub(crate) fn named(flag: &str) -> Result<Self, Fault> {
        let pids = word(flag).unwrap_or_default();
        let pids = pids.split(',').filter(|pid| !pid.is_empty());
        let meter = |pid: &str| Ok(Meter::new(Some(Pid::from_raw(pid.parse()?))));
        Ok(Self(pids.map(meter).collect::<Result<_, Fault>>()?))
    }

    fn start(&self) -> Result<Vec<Cost>, Fault> {
        self.0.iter().map(Meter::start).collect()
    }

    /// Processor time of each of so many calls since then, of all processes together.
    fn each_us(&self, since: Vec<Cost>, calls: usize) -> Result<f64, Fault> {
        if self.0.is_empty() {
            return Ok(f64::NAN);
        }
        let mut sum = 0.0;
        for (meter, since) in self.0.iter().zip(since) {
            sum += meter.stop(since)?.each(calls).server_us;
        }
        Ok(sum)
    }
}

/// What one server showed, round by round.
#[derive(Default)]
struct Side {
    per_second: Vec<f64>,
    server_us: Vec<f64>,
    p50: Vec<f64>,
    p99: Vec<f64>,
    /// From the wish for an identity until it is in hand, with nobody else there.
    created: Vec<f64>,
}

/// What both showed.
#[derive(Default)]
pub(crate) struct Duel {
    ours: Side,
    theirs: Side,
}

impl Duel {
    /// Lets both make their calls, round by round.
    pub(crate) async fn fight<A: Call, B: Call>(
        loops: &Loops,
        ours: &(Arc<A>, Server),
        theirs: &(Arc<B>, Server),
    ) -> Result<Self, Fault> {
        let mut duel = Self::default();
        for _ in 0..loops.rounds {
            duel.ours.round(loops, loops.alone.0, ours).await?;
            duel.theirs.round(loops, loops.alone.1, theirs).await?;
        }
        Ok(duel)
    }

    /// The rival's identities come about by other means than the calls that were made.
    pub(crate) fn rival_creates(&mut self, waits: Vec<f64>) {
        self.theirs.created = waits;
    }
}

impl Side {
    async fn round<C: Call>(
        &mut self,
        loops: &Loops,
        alone: usize,
        (call, server): &(Arc<C>, Server),
    ) -> Result<(), Fault> {
        // A server may be several processes, so their time is measured here.
        let blind = Meter::new(None);
        if alone > 0 {
            let alone = drive::alone(&**call, alone, &blind).await?.check()?;
            self.created.push(alone.wait_ms(0.5));
        }
        let since = server.start()?;
        let pass = drive::closed(call, (loops.in_flight, loops.lasting), &blind).await?.check()?;
        self.server_us.push(server.each_us(since, pass.done)?);
        self.per_second.push(pass.per_second);
        self.p50.push(pass.wait_ms(0.5));
        self.p99.push(pass.wait_ms(0.99));
        Ok(())
    }

    fn medians(&self) -> [f64; 5] {
        let Self { per_second, server_us, p50, p99, created } = self;
        [per_second, server_us, p50, p99, created].map(|rounds| quantile(rounds, 0.5))
    }
}

/// All duels of a run.
#[derive(Default)]
pub(crate) struct Tally(Vec<(String, String, Duel)>);

/// What is compared, in the order of [`Side::medians`].
const MEASURES: [&str; 5] = ["per_second", "server_us", "p50_ms", "p99_ms", "created_p50_ms"];

impl Tally {
    pub(crate) fn add(&mut self, what: String, key: String, duel: Duel) {
        self.0.push((what, key, duel));
    }

    /// The table for people: both sides, and Mayfly ÷ rival.
    pub(crate) fn tell(&self) {
        if self.0.is_empty() {
            return say("nobody to compare with");
        }
        say(&format!(
            "{:<52} {:>7} {:>9} {:>9} {:>9} {:>9} {:>11}",
            "", "", "a second", "server us", "p50 ms", "p99 ms", "created ms"
        ));
        for (what, _, duel) in &self.0 {
            let (ours, theirs) = (duel.ours.medians(), duel.theirs.medians());
            line(what, "Mayfly", ours);
            line("", "rival", theirs);
            line("", "ratio", std::array::from_fn(|at| ratio(&ours, &theirs, at)));
        }
    }

    /// Both sides and their ratios. What was not measured is left out.
    pub(crate) fn figures(&self) -> Vec<(String, f64)> {
        let mut figures = Vec::new();
        for (_, key, duel) in &self.0 {
            let (ours, theirs) = (duel.ours.medians(), duel.theirs.medians());
            for (at, measure) in MEASURES.into_iter().enumerate() {
                let value = |side: &[f64; 5]| side.get(at).copied().unwrap_or(f64::NAN);
                for (side, value) in [
                    ("mayfly", value(&ours)),
                    ("rival", value(&theirs)),
                    ("ratio", ratio(&ours, &theirs, at)),
                ] {
                    if value.is_finite() {
                        figures.push((format!("{key}_{measure}_{side}"), value));
                    }
                }
            }
        }
        figures
    }
}

fn ratio(ours: &[f64; 5], theirs: &[f64; 5], at: usize) -> f64 {
    match (ours.get(at), theirs.get(at)) {
        (Some(ours), Some(theirs)) => ours / theirs,
        (None, _) | (_, None) => f64::NAN,
    }
}

fn line(what: &str, side: &str, [per_second, server, p50, p99, created]: [f64; 5]) {
    say(&format!(
        "{what:<52} {side:>7} {per_second:>9.1} {server:>9.1} {p50:>9.3} {p99:>9.3} {created:>11.3}"
    ));
}
