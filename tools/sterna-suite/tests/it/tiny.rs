//! Tiny runs of sections that need nothing but this crate, as processes; those that train are run by `bash run.sh --tiny`, with a
//! bundle.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;

/// Runs `sections` small, with `sterna` as the program that is measured.
fn suite(out: &Path, sterna: &str, sections: &[&str]) -> Output {
    let crate_folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_sterna-suite"));
    command.arg("run").args(sections).args(["--tiny", "--sterna", sterna]).arg("--out").arg(out);
    command.arg("--inputs").arg(crate_folder.join("inputs"));
    command.arg("--baselines").arg(crate_folder.join("baselines"));
    command.arg("--contracts").arg(crate_folder.join("contracts"));
    command.output().expect("the suite starts")
}

fn report(out: &Path) -> (String, Value) {
    let text = fs::read_to_string(out.join("report.md")).expect("report.md");
    let json = fs::read_to_string(out.join("report.json")).expect("report.json");
    (text, serde_json::from_str(&json).expect("report.json is JSON"))
}

#[test]
fn sections_that_pass_leave_a_figure_in_every_line() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("report");
    let output =
        suite(&out, "/bin/true", &["ops", "attention-ops", "ceilings", "attention", "sanitizer"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let (text, json) = report(&out);
    let sections = json["sections"].as_array().unwrap();
    assert_eq!(sections.len(), 5);
    for section in sections {
        assert_eq!(section["error"], Value::Null, "{section}");
        if section["name"] == "sanitizer" {
            assert!(section["findings"]["skipped"].is_string(), "{section}");
            continue;
        }
        let rows = section["findings"]["tables"][0]["rows"].as_array().unwrap();
        assert!(!rows.is_empty(), "{section}");
    }
    assert!(text.contains("| Memory checker on the fused kernels | skipped: "), "{text}");
    for line in ["| SwiGLU | bf16 | y ", "| bf16 product |", "Crossover of flash and cuDNN"] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    // What was not run is told, with the command.
    assert!(text.contains("bash run.sh long-128k"), "{text}");
}

#[test]
fn a_section_that_fails_is_in_the_report_and_costs_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("report");
    let output = suite(&out, "/bin/false", &["equal", "ceilings"]);
    assert_eq!(output.status.code(), Some(1));
    let (text, json) = report(&out);
    let sections = json["sections"].as_array().unwrap();
    let names: Vec<&str> = sections.iter().map(|it| it["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["ceilings", "equal"]);
    let failures = sections[1]["findings"]["failures"].as_array().unwrap();
    assert!(failures.iter().all(|line| line.as_str().unwrap().contains("exit status: 1")));
    assert!(text.contains("| Ceilings of the card | passed |"), "{text}");
}

#[test]
fn a_word_that_is_no_section_is_refused_with_those_that_are() {
    let folder = tempfile::tempdir().unwrap();
    let output = suite(&folder.path().join("report"), "/bin/true", &["opps"]);
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("`opps`") && text.contains("long-128k"), "{text}");
}

#[test]
fn a_lease_ends_where_nothing_can_be_said_and_its_output_with_what_to_mend() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("report");
    let output = suite(&out, "/bin/false", &["lease"]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(!text.contains("contracts: "), "nothing else was begun: {text}");
    // Beside the archive as well, for whoever brings back files one by one.
    for summary in [out.join("summary.txt"), folder.path().join("summary.txt")] {
        let text = fs::read_to_string(summary).unwrap();
        assert!(text.lines().any(|line| line.starts_with("open NCCL in a world of one")), "{text}");
        let mend = "MEND the machine: 1 wrong: `/bin/false --version` does not run [passed]";
        assert!(text.contains(mend), "{text}");
    }
    assert!(folder.path().join("report.tgz").is_file());
}

#[test]
fn a_call_whose_time_is_up_says_what_it_left() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("report");
    let archive = folder.path().join("away/report.tgz");
    let words = ["machine", "ceilings", "--seconds", "1", "--archive", archive.to_str().unwrap()];
    let output = suite(&out, "/bin/true", &words);
    assert!(output.status.success() && archive.is_file());
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("ceilings: skipped: the time of this call is up"), "{text}");
    assert!(report(&out).0.contains("| Ceilings of the card | skipped: the time"), "{text}");
}
