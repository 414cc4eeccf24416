use std::{
    env, fs,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use sterna_testkit::{spawn_ranks, spawn_ranks_losing};

use crate::panic_message;

#[test]
fn every_rank_runs_once_and_finds_its_place() {
    for world_size in [1, 3] {
        spawn_ranks(world_size, |rank| {
            assert_eq!(rank.world_size, world_size);
            assert_eq!(env::var("RANK").unwrap(), rank.rank.to_string());
            assert_eq!(env::var("WORLD_SIZE").unwrap(), world_size.to_string());
            // Fails if the file is there, so each rank comes here once; all see one folder.
            fs::File::create_new(rank.folder.join(rank.rank.to_string())).unwrap();
            while fs::read_dir(&rank.folder).unwrap().count() < world_size {
                thread::sleep(Duration::from_millis(5));
            }
        });
    }
    assert!(env::var_os("STERNA_TEST_RANK").is_none(), "only the parent comes here");
}

#[test]
fn a_rank_that_panics_ends_all_and_its_output_is_shown() {
    let started = Instant::now();
    let text = panic_message(|| {
        spawn_ranks(3, |rank| {
            assert!(rank.rank != 1, "this is the cause");
            thread::sleep(Duration::from_mins(1));
        });
    });
    assert!(started.elapsed() < Duration::from_secs(30), "the sleeping ranks were not killed");
    assert!(text.starts_with("rank 1 ended with exit status: 101"), "{text}");
    assert!(text.contains("\n[rank 1] this is the cause\n"), "{text}");
}

// A rank runs its test from the start, so each of the following has one call, which a rank never returns from.

#[test]
fn a_rank_may_be_lost_on_purpose() {
    spawn_ranks_losing(2, 1, |rank| {
        if rank.rank == 1 {
            die();
        }
    });
}

#[test]
fn a_rank_that_dies_without_purpose_is_a_failure() {
    let text = panic_message(|| spawn_ranks(1, |_| die()));
    assert!(text.starts_with("rank 0 ended with signal: 9"), "{text}");
}

#[test]
fn a_rank_that_should_have_died_is_a_failure() {
    let text = panic_message(|| spawn_ranks_losing(1, 0, |_| {}));
    assert!(text.starts_with("rank 0 was to die, but ended with exit status: 0"), "{text}");
}

fn die() {
    Command::new("kill").args(["-9", &std::process::id().to_string()]).status().unwrap();
    thread::sleep(Duration::from_mins(1));
}
