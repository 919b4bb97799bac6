//! An hour of work on credentials of half a minute (R42).

use mayfly_core::{Ask, Begin, Denial, Extent, Serial, Span, Status, TaskId, Timestamp, limits};

use crate::bench::{Bench, START, begin, task};

const TTL: Span = Span::from_secs(30);
const HOUR: u64 = 3600;

/// What a workload holds: fetched once, renewed at half its life.
struct Held {
    serial: Serial,
    not_after: Timestamp,
    renew_at: Timestamp,
}

fn fetch(bench: &mut Bench, id: TaskId) -> Option<Held> {
    let (serial, not_after) = bench.ask(id, Ask::X509)?;
    let renew_at = bench.now.plus(Span(TTL.0 / 2));
    Some(Held { serial, not_after, renew_at })
}

/// What a verifier says that follows the feed and reads nothing else.
fn accepts(bench: &Bench, serial: &Serial, not_after: Timestamp) -> bool {
    not_after > bench.now && bench.follower.status(serial) == Status::Valid
}

/// R42: an agent works for an hour in steps of a few minutes. Each step has a sub-task of its own with
/// credentials of 30 seconds, renewed while the step goes on. No call fails; what was stolen in a step
/// is worth nothing from its end on; and at each instant the step that goes on is all that there is to
/// steal.
#[test]
fn r42_an_hour_of_thirty_second_credentials() {
    let mut bench = Bench::new();
    let mut agent = Begin { deadline: Some(START.plus(Span::from_secs(HOUR))), ..begin(None) };
    agent.mandate.ttl = Some(TTL);
    agent.lease = Some(limits::LEASE_MAX);
    bench.begin(task(0), agent);
    let lengths = [120, 300, 180, 240, 90].into_iter().cycle();
    let (mut second, mut calls, mut steps) = (0, 0, 0_u128);
    let mut issued: Vec<(TaskId, Serial, Timestamp)> = Vec::new();
    for length in lengths {
        if second == HOUR {
            break;
        }
        steps += 1;
        let (id, until) = (task(steps), HOUR.min(second + length));
        let mut step = Begin { delegated: true, ..begin(Some(task(0))) };
        step.mandate.scope.actions = Extent::only([format!("step-{steps}")]);
        step.lease = Some(limits::LEASE_MAX);
        assert_eq!(bench.refused(id, step), None, "step {steps}");
        let mut held = fetch(&mut bench, id).expect("a step begins with a credential");
        issued.push((id, held.serial, held.not_after));
        while second < until {
            bench.now = START.plus(Span::from_secs(second));
            if held.renew_at <= bench.now {
                held = fetch(&mut bench, id).expect("an active sub-task is renewed");
                issued.push((id, held.serial, held.not_after));
            }
            // One call a second, and none fails.
            assert!(accepts(&bench, &held.serial, held.not_after), "second {second}");
            assert!(bench.registrar.standing(id, &held.serial).is_ok(), "second {second}");
            calls += 1;
            exposed(&bench, &issued, id);
            second += 1;
        }
        bench.now = START.plus(Span::from_secs(second));
        bench.end(id);
        stolen_is_worthless(&mut bench, &issued, id);
    }
    assert_eq!((calls, second), (HOUR, HOUR));
    assert!(steps >= 15 && issued.len() >= 200, "{steps} steps, {} credentials", issued.len());
    assert!(issued.iter().all(|(_, serial, until)| !accepts(&bench, serial, *until)));
}

/// Whatever anybody could have stolen by now and still use is of the step that goes on, and little.
fn exposed(bench: &Bench, issued: &[(TaskId, Serial, Timestamp)], current: TaskId) {
    let usable = issued.iter().filter(|(_, serial, until)| accepts(bench, serial, *until));
    let mut count = 0;
    for (id, ..) in usable {
        assert_eq!(*id, current, "a credential of another step is accepted");
        count += 1;
    }
    assert!((1..=2).contains(&count), "{count} credentials are alive");
}

/// The step has ended this instant: all of its credentials are refused, though some have not expired.
fn stolen_is_worthless(bench: &mut Bench, issued: &[(TaskId, Serial, Timestamp)], over: TaskId) {
    let of_step = || issued.iter().filter(|(id, ..)| *id == over);
    let alive = of_step().filter(|(.., until)| *until > bench.now).count();
    assert!(
        alive > 0 || bench.now >= START.plus(Span::from_secs(HOUR)),
        "something is left to steal"
    );
    for (id, serial, until) in of_step() {
        assert!(!accepts(bench, serial, *until), "a stolen credential is accepted");
        assert_eq!(bench.registrar.standing(*id, serial).err(), Some(Denial::TaskEnded));
    }
    assert!(bench.ask(over, Ask::X509).is_none(), "nothing is renewed after the end");
}
