//! Persistence grants: a job outlives the processes that attempt it, and nothing else (R43).

use mayfly_core::{
    Ask, Begin, Binding, Cause, Denial, Event, Holder, ProcessKey, RequestKey, Span, State, TaskId,
    limits,
};

use crate::bench::{Bench, START, begin, task, terms};

const WINDOW: Span = Span::from_secs(600);

fn job(attempts: Option<u32>) -> Begin {
    let mut job = Begin::new(terms("p", Binding::Lease), Holder::Job);
    job.deadline = Some(START.plus(WINDOW));
    job.mandate.budget.attempts = attempts;
    job
}

fn attempt(number: u64) -> Begin {
    let key = ProcessKey { boot: [1; 16], inode: number, pid: 1 };
    let parent = Some(task(1));
    Begin { parent, ..Begin::new(terms("p", Binding::Process), Holder::Process(key)) }
}

fn dies(bench: &mut Bench, id: TaskId) {
    bench.tell(Event::HolderGone { task: id, exit: Some(1) });
}

/// R43: `n` attempts, one at a time, also if each dies with the broker; the next is refused for ever.
#[test]
fn r43_a_job_has_its_attempts_across_crashes_and_not_one_more() {
    for attempts in [1, 2, 5] {
        let mut bench = Bench::new();
        bench.begin(task(1), job(Some(attempts)));
        for number in 1..=attempts {
            let id = task(10 + u128::from(number));
            assert_eq!(bench.refused(id, attempt(number.into())), None, "attempt {number}");
            let second = bench.refused(task(99), attempt(99));
            assert_eq!(second, Some(Denial::AttemptRunning));
            assert!(bench.ask(id, Ask::X509).is_some());
            // Between attempts, and long after the last was forgotten by everything but its job.
            bench.restart(bench.journal.len());
            dies(&mut bench, id);
            bench.now = bench.now.plus(limits::FORGET_AFTER).plus(Span::from_secs(1));
            bench.registrar.handle_timeout(bench.now);
            if bench.now < START.plus(WINDOW) && number < attempts {
                assert_eq!(bench.registrar.task(task(1)).map(|job| job.attempts), Some(number));
                assert_eq!(bench.cause(task(1)), None, "a job goes on after attempt {number}");
            }
        }
        assert!(matches!(bench.cause(task(1)), Some(Cause::Failed | Cause::Deadline)));
        assert_eq!(bench.refused(task(98), attempt(98)), Some(Denial::ParentInactive));
    }
}

/// R43: attempts that a crash has lost were none.
#[test]
fn r43_an_attempt_that_never_reached_the_disk_does_not_count() {
    let mut bench = Bench::new();
    bench.begin(task(1), job(Some(1)));
    let kept = bench.journal.len();
    assert_eq!(bench.refused(task(2), attempt(2)), None);
    bench.restart(kept);
    assert_eq!(bench.refused(task(3), attempt(3)), None);
    dies(&mut bench, task(3));
    assert_eq!(bench.cause(task(1)), Some(Cause::Failed), "none is left");
}

/// R43: a crash after the last attempt's end leaves no open job, wherever it tears.
#[test]
fn r43_a_torn_end_leaves_no_job_without_attempts() {
    for cause in [Cause::Completed, Cause::Revoked] {
        for kept in 0..=2 {
            let mut bench = Bench::new();
            bench.begin(task(1), job(Some(1)));
            bench.begin(task(2), attempt(2));
            let before = bench.journal.len();
            bench.end_as(task(2), cause);
            assert_eq!(bench.journal.len(), before + 2);
            bench.restart(before + kept);
            let over = |id| bench.registrar.task(id).is_some_and(|task| task.state.is_ended());
            assert_eq!((over(task(1)), over(task(2))), (kept > 0, kept > 0), "{cause} {kept}");
        }
    }
}

/// R43: outside its window nothing is attempted, and what runs stops.
#[test]
fn r43_a_window_ends_job_and_attempt() {
    let mut bench = Bench::new();
    let endless = Begin { deadline: None, ..job(None) };
    assert_eq!(bench.refused(task(1), endless), Some(Denial::DeclarationMissing));
    bench.begin(task(1), job(None));
    assert_eq!(bench.refused(task(2), attempt(2)), None);
    bench.now = START.plus(WINDOW).minus(Span::from_secs(10));
    let (_, until) = bench.ask(task(2), Ask::X509).expect("the window is open");
    assert_eq!(until, START.plus(WINDOW), "P7");
    bench.now = START.plus(WINDOW);
    assert_eq!(bench.refused(task(3), attempt(3)), Some(Denial::ParentInactive));
    assert_eq!(bench.cause(task(1)), Some(Cause::Deadline));
    assert_eq!(bench.cause(task(2)), Some(Cause::ParentEnded));
}

/// R43: one attempt completes, and the job with it; three are what is allowed where nothing was said.
#[test]
fn r43_a_completed_attempt_closes_the_job() {
    let mut bench = Bench::new();
    bench.begin(task(1), job(None));
    for (number, nth) in (2..=4).zip(2..) {
        assert_eq!(bench.refused(task(number), attempt(nth)), None);
        assert_eq!(bench.cause(task(1)), None);
        let cause = if number == 4 { Cause::Completed } else { Cause::Failed };
        bench.end_as(task(number), cause);
    }
    assert_eq!(bench.cause(task(1)), Some(Cause::Completed), "though it was the last attempt");
    assert_eq!(bench.refused(task(5), attempt(5)), Some(Denial::ParentInactive));
}

/// R43: a job holds nothing; only its profile attempts it; a job is no attempt.
#[test]
fn r43_a_job_issues_nothing_and_is_attempted_by_its_own_profile_only() {
    let mut bench = Bench::new();
    bench.begin(task(1), job(None));
    assert!(bench.ask(task(1), Ask::X509).is_none());
    assert_eq!(bench.denials, [Denial::JobHoldsNothing]);
    let mut other = attempt(2);
    other.terms.profile = "q".into();
    assert_eq!(bench.refused(task(2), other), Some(Denial::DelegationNotPermitted));
    let nested = Begin { parent: Some(task(1)), ..job(Some(100)) };
    assert_eq!(bench.refused(task(2), nested), Some(Denial::HolderUnfit));
    let leased = Begin { lease: Some(Span::from_secs(60)), ..job(None) };
    assert_eq!(bench.refused(task(2), leased), Some(Denial::HolderUnfit));
}

/// R43: a successor that does not know whether its attempt was begun tells the same wish again: one
/// attempt, one task, whatever has crashed between.
#[test]
fn r43_a_successor_retries_with_the_same_request_key() {
    let mut bench = Bench::new();
    bench.begin(task(1), job(Some(2)));
    let key = RequestKey { key: [1; 32], body: [2; 32] };
    let wish = || Begin { key: Some(key), ..attempt(7) };
    let kept = bench.journal.len();
    assert_eq!(bench.refused(task(2), wish()), None);
    assert_eq!(bench.refused(task(3), wish()), None, "told again");
    assert!(bench.registrar.task(task(3)).is_none());
    bench.restart(bench.journal.len());
    assert_eq!(bench.refused(task(3), wish()), None, "told again after a crash");
    assert!(bench.registrar.task(task(3)).is_none());
    let other = Begin { key: Some(RequestKey { body: [3; 32], ..key }), ..attempt(8) };
    assert_eq!(bench.refused(task(3), other), Some(Denial::IdempotencyConflict));
    assert_eq!(bench.registrar.task(task(1)).map(|job| job.attempts), Some(1));
    // Where the crash has lost it, the same wish begins it.
    bench.restart(kept);
    assert_eq!(bench.refused(task(4), wish()), None);
    assert_eq!(bench.registrar.task(task(4)).map(|task| task.state), Some(State::Active));
}

/// A key lasts as long as its task is remembered, and is free afterwards.
#[test]
fn r43_a_key_is_remembered_as_long_as_its_task() {
    let mut bench = Bench::new();
    let wish = || Begin { key: Some(RequestKey { key: [1; 32], body: [2; 32] }), ..begin(None) };
    bench.begin(task(1), wish());
    bench.end(task(1));
    assert_eq!(bench.refused(task(2), wish()), None, "an ended task is an answer too");
    assert!(bench.registrar.task(task(2)).is_none());
    bench.now = bench.now.plus(limits::FORGET_AFTER).plus(Span::from_secs(1));
    assert_eq!(bench.refused(task(2), wish()), None);
    assert!(bench.registrar.task(task(2)).is_some());
}
