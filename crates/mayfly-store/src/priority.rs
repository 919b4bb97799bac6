//! How a thread lets others go first.

use rustix::process::{getpriority_process, setpriority_process};

/// Lowers the calling thread's priority to `nice`, from 0 to 19, and that of no other thread: 5 gets a third and 10
/// a tenth of what a thread gets that is not nice, where all cores are busy, and as much as there is where they are not.
///
/// Whoever started the program may have meant it to be nicer still; that is left as it is. Where it is not
/// allowed, nothing changes.
pub fn step_back(nice: i32) {
    let stepped =
        getpriority_process(None).and_then(|given| setpriority_process(None, given.max(nice)));
    if let Err(error) = stepped {
        tracing::debug!(%error, "a thread's priority could not be lowered");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_steps_back_alone_and_never_forward() {
        let nice = || getpriority_process(None).unwrap();
        let before = nice();
        let stepping = move || {
            step_back(10);
            let once = nice();
            setpriority_process(None, 19).unwrap();
            step_back(10);
            (once, nice())
        };
        assert_eq!(std::thread::spawn(stepping).join().unwrap(), (before.max(10), 19));
        assert_eq!(nice(), before, "other threads are as they were");
    }
}
