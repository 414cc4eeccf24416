//! Checkpoints on a disk that is full or cannot be written. Needs root, to mount a small file system in memory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::workspace::Workspace;

/// A file system of a given size, unmounted when it is dropped.
struct Mounted(PathBuf);

impl Mounted {
    /// `None`, and a line that says what is skipped, where this process may not mount.
    #[expect(clippy::print_stderr, reason = "a test that is skipped must say so")]
    fn new(dir: PathBuf, options: &str) -> Option<Self> {
        fs::create_dir(&dir).unwrap();
        let mounted = mount(&["-t", "tmpfs", "-o", options, "tmpfs"], &dir);
        if !mounted {
            eprintln!("skipped: full and read-only disks, because `mount` is not allowed here");
        }
        mounted.then_some(Self(dir))
    }

    fn remount(&self, options: &str) {
        assert!(mount(&["-o", &format!("remount,{options}")], &self.0));
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

fn mount(args: &[&str], dir: &Path) -> bool {
    let output = Command::new("mount").args(args).arg(dir).output();
    output.is_ok_and(|output| output.status.success())
}

/// Saves every two steps of six to `disk/ckpt`, on two ranks.
fn train(workspace: &Workspace) -> Output {
    let checkpoint =
        "checkpoint=[{output_dir: disk/ckpt, save_every_n_steps: 2, auto_resume: true}]";
    let sets = [checkpoint, "train_iters=6", "sequence_parallel_size=2"];
    let sets = sets.iter().flat_map(|set| ["--set", set]);
    workspace.run(&["train", "recipe.yaml", "--quiet"].into_iter().chain(sets).collect::<Vec<_>>())
}

fn steps(workspace: &Workspace) -> Vec<u64> {
    let listed = sterna_checkpoint::list(&workspace.path("disk/ckpt")).unwrap();
    listed.iter().map(|listed| listed.step).collect()
}

#[test]
fn ranks_that_meet_a_full_disk_lose_nothing_and_go_on_when_there_is_room() {
    let undisturbed = Workspace::new();
    fs::create_dir(undisturbed.path("disk")).unwrap();
    assert!(train(&undisturbed).status.success());
    let size: u64 =
        sterna_checkpoint::Checkpoint::open(&undisturbed.path("disk/ckpt/checkpoint-6"))
            .unwrap()
            .manifest
            .num_bytes();

    let workspace = Workspace::new();
    // Room for one checkpoint and most of another.
    let room = format!("size={}", size * 7 / 4);
    let Some(disk) = Mounted::new(workspace.path("disk"), &room) else { return };
    let output = train(&workspace);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    let expected = "could not write its part of the checkpoint of step `4`: cannot write \
                    `disk/ckpt/checkpoint-4.incomplete/rank_0000";
    assert!(text.contains(expected), "{text}");
    assert!(text.contains("No space left on device"), "{text}");
    assert!(text.contains("hint: free space or mend the folder, and start again"), "{text}");
    assert_eq!(steps(&workspace), [2]);

    disk.remount(&format!("size={}", size * 8));
    let output = train(&workspace);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("Going on after step 2, from disk/ckpt/checkpoint-2"), "{text}");
    assert_eq!(steps(&workspace), [6, 4, 2]);
    for rank in 0..2 {
        let shard = format!("disk/ckpt/checkpoint-6/rank_0000{rank}.safetensors");
        assert!(
            fs::read(workspace.path(&shard)).unwrap()
                == fs::read(undisturbed.path(&shard)).unwrap()
        );
    }
}

#[test]
fn a_folder_that_cannot_be_written_is_refused_before_the_first_step_of_the_ranks() {
    let workspace = Workspace::new();
    let Some(_disk) = Mounted::new(workspace.path("disk"), "size=1m,ro") else { return };
    let output = train(&workspace);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("error: cannot write `disk/ckpt`"), "{text}");
    assert!(text.contains("Read-only file system"), "{text}");
    assert!(!text.contains("Train iter"), "{text}");
}
