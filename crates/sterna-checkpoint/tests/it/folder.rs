//! Which checkpoints there are, which are kept, and who may write.

use std::fs;

use sterna_checkpoint::{Checkpoint, CheckpointFolder, list};

use crate::files::write;

fn steps(dir: &std::path::Path) -> Vec<u64> {
    list(dir).unwrap().into_iter().map(|listed| listed.step).collect()
}

#[test]
fn only_complete_checkpoints_are_listed_newest_first() {
    let temp = tempfile::tempdir().unwrap();
    assert!(list(&temp.path().join("none")).unwrap().is_empty());
    let folder = CheckpointFolder::open(temp.path()).unwrap();
    for step in [5, 40, 9] {
        write(&folder, step);
    }
    folder.begin(50).unwrap();
    for name in ["checkpoint-007", "checkpoint-", "checkpoint-x", "checkpoint-60", "global_step_99"]
    {
        fs::create_dir(temp.path().join(name)).unwrap();
    }
    assert_eq!(steps(temp.path()), [40, 9, 5]);
}

#[test]
fn a_new_run_removes_what_was_left_half_written() {
    let temp = tempfile::tempdir().unwrap();
    let folder = CheckpointFolder::open(temp.path()).unwrap();
    write(&folder, 5);
    let incomplete = folder.begin(6).unwrap();
    fs::write(incomplete.join("rank_00000.safetensors"), "half").unwrap();
    fs::create_dir(temp.path().join("checkpoint-4.deleted")).unwrap();
    drop(folder);
    drop(CheckpointFolder::open(temp.path()).unwrap());
    let mut names: Vec<_> = fs::read_dir(temp.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, [".sterna.lock", "checkpoint-5"]);
}

#[test]
fn the_newest_are_kept_and_those_after_the_present_step_stay() {
    let temp = tempfile::tempdir().unwrap();
    let folder = CheckpointFolder::open(temp.path()).unwrap();
    for step in [1, 2, 3, 9] {
        write(&folder, step);
    }
    // The run fell back from 9, which may be damaged.
    assert_eq!(folder.prune(3, 2).unwrap(), [temp.path().join("checkpoint-1")]);
    assert_eq!(steps(temp.path()), [9, 3, 2]);
}

#[test]
fn a_step_is_written_again_in_place_of_a_damaged_one() {
    let temp = tempfile::tempdir().unwrap();
    let folder = CheckpointFolder::open(temp.path()).unwrap();
    let dir = write(&folder, 5);
    fs::write(dir.join("rank_00002.safetensors"), "damaged").unwrap();
    assert_eq!(Checkpoint::open(&dir).unwrap().verify().len(), 1);
    assert_eq!(write(&folder, 5), dir);
    assert!(Checkpoint::open(&dir).unwrap().verify().is_empty());
}

#[test]
fn two_runs_cannot_write_to_one_folder() {
    let temp = tempfile::tempdir().unwrap();
    let _folder = CheckpointFolder::open(temp.path()).unwrap();
    let error = CheckpointFolder::open(temp.path()).unwrap_err();
    let holder = format!("process {} on ", std::process::id());
    assert!(error.to_string().contains(&holder), "{error}");
}

#[test]
fn folders_of_other_programs_are_refused_and_left_alone() {
    let temp = tempfile::tempdir().unwrap();
    // As transformers' Trainer names its checkpoints.
    let other = temp.path().join("checkpoint-100");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("trainer_state.json"), "{}").unwrap();
    let notes = temp.path().join("checkpoint-notes.deleted");
    fs::create_dir(&notes).unwrap();
    let error = CheckpointFolder::open(temp.path()).unwrap_err().to_string();
    assert_eq!(error, format!("`{}` is not a checkpoint of sterna", other.display()));
    assert!(list(temp.path()).unwrap().is_empty());
    fs::remove_dir_all(&other).unwrap();
    CheckpointFolder::open(temp.path()).unwrap();
    assert!(notes.exists());
}

#[test]
fn a_run_that_ended_before_its_first_checkpoint_is_noted() {
    let temp = tempfile::tempdir().unwrap();
    let folder = CheckpointFolder::open(temp.path()).unwrap();
    assert_eq!(folder.note_start(17).unwrap(), None);
    assert_eq!(folder.note_start(99).unwrap(), Some(17));
    write(&folder, 1);
    assert_eq!(folder.note_start(99).unwrap(), None);
}
