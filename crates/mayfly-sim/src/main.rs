//! Shows one world, or searches many.
//!
//! `mayfly-sim 42` tells the story of seed 42. `mayfly-sim 0 100000` lives through that many worlds
//! from seed 0 on and names each seed that breaks a law. `mayfly-sim STORY.txt` plays a scenario.
#![expect(clippy::print_stdout, reason = "a program for people")]

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args().skip(1).collect();
    if let [path] = args.as_slice()
        && let Ok(story) = std::fs::read_to_string(path)
    {
        return play(&story);
    }
    let numbers: Option<Vec<u64>> = args.iter().map(|arg| arg.parse().ok()).collect();
    match numbers.as_deref() {
        Some([seed]) => tell(*seed),
        Some([from, count]) => search(*from, *count),
        None | Some(_) => {
            println!("usage: mayfly-sim SEED | mayfly-sim FIRST_SEED COUNT | mayfly-sim STORY.txt");
            ExitCode::from(2)
        }
    }
}

fn play(story: &str) -> ExitCode {
    match mayfly_sim::scenario::play(story) {
        Ok(()) => {
            println!("it holds");
            ExitCode::SUCCESS
        }
        Err(why) => {
            println!("{why}");
            ExitCode::FAILURE
        }
    }
}

fn tell(seed: u64) -> ExitCode {
    println!("SEED {seed} {}", mayfly_sim::World::new(seed, None, Default::default()).weather());
    let outcome = mayfly_sim::run_in_words(seed, None);
    for line in outcome.trace.lines() {
        println!("{line}");
    }
    match outcome.violation {
        Some(violation) => {
            println!("{violation}");
            ExitCode::FAILURE
        }
        None => ExitCode::SUCCESS,
    }
}

/// Seeds that are named before the search stops.
const FOUND_MAX: u32 = 20;

fn search(from: u64, count: u64) -> ExitCode {
    let mut found = 0_u32;
    for seed in (from..).take(usize::try_from(count).unwrap_or(usize::MAX)) {
        if let Some(violation) = mayfly_sim::run(seed, None).violation {
            found += 1;
            let what: String = violation.to_string().chars().take(200).collect();
            println!("SEED {seed} {what}");
            if found == FOUND_MAX {
                break;
            }
        }
    }
    println!("{found} laws broken in {count} worlds");
    if found == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
