//! The launcher with shell scripts as ranks.

use std::process::Command;
use std::time::{Duration, Instant};

use super::*;

/// Runs `script` as each of three ranks; `$RANK` and the other variables are set.
fn launch(script: &str) -> Result<(), String> {
    let launch =
        Launch { world_size: 3, master_addr: "127.0.0.1", master_port: None, num_threads: Some(1) };
    let outcome = supervise(&launch, || {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    });
    outcome.map_err(|failure| failure.render())
}

/// A report as a rank writes it.
fn says(message: &str, is_about_peer: bool) -> String {
    let mut failure = Failure::new(Exit::Failed, message);
    failure.is_about_peer = is_about_peer;
    let json = serde_json::to_string(&failure).unwrap();
    format!("echo '{json}' > $STERNA_FAILURE_DIR/rank$RANK.json; exit 1")
}

#[test]
fn ranks_are_told_who_they_are() {
    let script = r"
        test $RANK -lt 3 && test $LOCAL_RANK = $RANK && test $WORLD_SIZE = 3 && test $LOCAL_WORLD_SIZE = 3 &&
        test $MASTER_ADDR = 127.0.0.1 && test $MASTER_PORT -gt 1024 && test $OMP_NUM_THREADS = 1";
    assert_eq!(launch(script), Ok(()));
}

#[test]
fn a_killed_rank_is_named_and_the_others_are_ended() {
    let start = Instant::now();
    let error = launch("if [ $RANK = 1 ]; then kill -9 $$; fi; exec sleep 60").unwrap_err();
    assert!(
        error.starts_with("[rank 1] error: the process was ended by signal 9 (SIGKILL)\n"),
        "{error}"
    );
    // At once, by SIGTERM: not after the time that a rank may take to end.
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

#[test]
fn a_rank_that_says_nothing_is_named_with_its_exit_code() {
    let error = launch("if [ $RANK = 2 ]; then exit 7; fi; exec sleep 60").unwrap_err();
    assert_eq!(error, "[rank 2] error: the process exited with code 7 and did not say why\n");
}

#[test]
fn the_rank_that_caused_the_end_is_shown_and_not_the_one_that_noticed_first() {
    let noticed = says("rank 2 is gone", true);
    let cause = says("out of memory", false);
    let script = format!("if [ $RANK = 2 ]; then sleep 1; {cause}; else {noticed}; fi");
    assert_eq!(launch(&script), Err("[rank 2] error: out of memory\n".to_owned()));
}

#[test]
fn a_rank_that_ignores_the_polite_signal_is_killed() {
    let start = Instant::now();
    let script = "if [ $RANK = 0 ]; then exit 1; fi; trap '' TERM; while :; do sleep 1; done";
    assert!(
        launch(script).unwrap_err().starts_with("[rank 0] error: the process exited with code 1")
    );
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}

#[test]
fn signals_ignored_from_the_start_are_read_from_the_status_of_the_process() {
    // As /proc/self/status shows it under nohup: SIGHUP is 1, SIGPIPE (which Rust ignores) 13.
    let ignored =
        ignored_signals("Name:\tsterna\nSigBlk:\t0000000000000002\nSigIgn:\t0000000000001001\n");
    let has =
        [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM].map(|signal| is_in(ignored, signal));
    assert_eq!(has, [true, false, false]);
    assert_eq!(ignored_signals(""), 0);
}
