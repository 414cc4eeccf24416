//! The launcher with shell scripts as ranks.

use std::{fs, thread};

use super::*;

/// Runs `script` as each of three ranks; `$RANK` and the other variables are set.
fn launch(script: &str) -> Result<(), String> {
    launch_and(script, Duration::ZERO, |_| ())
}

/// The same, with what else happens.
fn launch_and(
    script: &str,
    stop_within: Duration,
    meanwhile: impl FnOnce(&Sender<Event>),
) -> Result<(), String> {
    let job = Job::of_equal_nodes(1, 3);
    let (sender, events) = mpsc::channel();
    let listener_sender = sender.clone();
    let listener: Listener = Arc::new(move |said| {
        if let Said::Ended { rank, status, report } = said {
            let _ = listener_sender.send(Event::Ended { rank, status, report });
        }
    });
    let command = || {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    };
    let env = BTreeMap::from([("OMP_NUM_THREADS".to_owned(), "1".to_owned())]);
    let node = describe(&job, &job.nodes()[0], ("127.0.0.1", 29500), 0, env);
    let ranks = LocalRanks::start(&node, Output::Ours, command, Command::spawn, &listener)
        .map_err(|failure| failure.render())?;
    meanwhile(&sender);
    let outcome = supervisor::wait(node.ranks.clone(), &events, &ranks, stop_within);
    outcome.map_err(|setback| setback.failure.render())
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
        test $MASTER_ADDR = 127.0.0.1 && test $MASTER_PORT = 29500 && test $TORCHELASTIC_RESTART_COUNT = 0 && test $OMP_NUM_THREADS = 1";
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
    // Well below what the others would sleep.
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
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
fn after_a_failure_the_others_are_not_asked_but_killed() {
    let start = Instant::now();
    let script =
        "trap '' TERM INT; if [ $RANK = 0 ]; then sleep 0.2; exit 1; fi; while :; do sleep 1; done";
    assert!(
        launch(script).unwrap_err().starts_with("[rank 0] error: the process exited with code 1")
    );
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
}

/// Runs ranks that do `on_term` when they are asked to end, and asks them with `signals`; `$DIR/report` has the report
/// of a rank that has saved.
fn ask_to_end(on_term: &str, signals: &[Signal], stop_within: Duration) -> Result<(), String> {
    let folder = tempfile::tempdir().unwrap();
    let report = Failure::new(Exit::Interrupted(15), "saved at step 7");
    fs::write(folder.path().join("report"), serde_json::to_string(&report).unwrap()).unwrap();
    let script = format!(
        "DIR={}; trap '{on_term}' TERM; : > $DIR/up$RANK; while :; do sleep 0.05; done",
        folder.path().display()
    );
    launch_and(&script, stop_within, |events| {
        let is_up = |rank| folder.path().join(format!("up{rank}")).exists();
        let start = Instant::now();
        while !(0..3).all(is_up) && start.elapsed() < Duration::from_mins(2) {
            thread::sleep(Duration::from_millis(10));
        }
        for signal in signals {
            events.send(Event::Signalled(*signal)).unwrap();
        }
    })
}

#[test]
fn asked_to_end_ranks_may_save_first() {
    let save = "sleep 1; cat $DIR/report > $STERNA_FAILURE_DIR/rank$RANK.json; exit 143";
    // Of several kinds at once, as schedulers and terminals send them.
    let signals = [Signal::SIGUSR1, Signal::SIGTERM, Signal::SIGHUP];
    let outcome = ask_to_end(save, &signals, Duration::from_mins(1));
    let expected = "error: interrupted by SIGUSR1\n  caused by: saved at step 7\n";
    assert_eq!(outcome, Err(expected.to_owned()));
}

#[test]
fn a_rank_that_cannot_save_is_told_with_the_interrupt() {
    let fail = "if [ $RANK = 1 ]; then exit 3; fi; exit 143";
    let outcome = ask_to_end(fail, &[Signal::SIGUSR1], Duration::from_mins(1));
    let expected = "error: interrupted by SIGUSR1\n  \
                    caused by: [rank 1] error: the process exited with code 3 and did not say why\n";
    assert_eq!(outcome, Err(expected.to_owned()));
}

#[test]
fn ranks_that_do_not_end_in_time_or_are_asked_again_are_killed() {
    for (num_signals, stop_within) in [(1, Duration::from_secs(1)), (2, Duration::from_mins(1))] {
        let start = Instant::now();
        let outcome = ask_to_end(":", &vec![Signal::SIGUSR1; num_signals], stop_within);
        assert_eq!(outcome, Err("error: interrupted by SIGUSR1\n".to_owned()));
        assert!(start.elapsed() < Duration::from_secs(50), "{:?}", start.elapsed());
    }
}
