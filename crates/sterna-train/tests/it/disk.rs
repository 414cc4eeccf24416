//! Tensors that go to disk come back as they were, and nothing of the file stays.

use std::{fs, thread::sleep, time::Duration};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use sterna_testkit::{TestRank, spawn_ranks_losing};
use sterna_train::{TrainError, storage::disk::DiskScratch};
use tch::{Kind, Tensor};

fn bytes_of(tensor: &Tensor) -> Vec<u8> {
    let mut bytes = vec![0; tensor.numel() * tensor.kind().elt_size_in_bytes()];
    tensor.contiguous().copy_data_u8(&mut bytes, tensor.numel());
    bytes
}

fn random(shape: &[i64], kind: Kind, seed: i64) -> Tensor {
    tch::manual_seed(seed);
    Tensor::randn(shape, (Kind::Float, tch::Device::Cpu)).to_kind(kind)
}

#[test]
fn tensors_of_odd_sizes_come_back_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    // The file starts with no space at all and grows.
    for needed_bytes in [0, 1 << 20] {
        let scratch = DiskScratch::create(folder.path(), needed_bytes).unwrap();
        let tensors: Vec<Tensor> = [
            (&[1_i64][..], Kind::Float),
            (&[3, 577], Kind::BFloat16),
            (&[0, 5], Kind::Half),
            (&[70_001], Kind::Double),
            (&[], Kind::Float),
            (&[5, 7, 11], Kind::Int64),
        ]
        .iter()
        .enumerate()
        .map(|(seed, (shape, kind))| random(shape, *kind, seed as i64))
        .chain([random(&[40, 30], Kind::Float, 9).transpose(0, 1)])
        .chain([random(&[40, 30], Kind::Float, 9).narrow(1, 3, 5)])
        .collect();
        // Several rounds: places are used again, in another order than before.
        for round in 0..3 {
            let mut on_disk: Vec<_> = tensors
                .iter()
                .map(|tensor| scratch.write(tensor.shallow_clone()).unwrap())
                .collect();
            for idx in (0..tensors.len()).rev() {
                let tensor = on_disk.remove(idx);
                if idx > 0 && round > 0 {
                    scratch.prefetch(&mut on_disk[idx - 1]).unwrap();
                }
                let back = scratch.read(tensor).unwrap();
                assert_eq!(back.kind(), tensors[idx].kind());
                assert_eq!(back.size(), tensors[idx].size());
                assert_eq!(bytes_of(&back), bytes_of(&tensors[idx]), "tensor {idx}");
            }
        }
    }
}

#[test]
fn a_region_is_rewritten_in_slices() {
    let folder = tempfile::tempdir().unwrap();
    let scratch = DiskScratch::create(folder.path(), 4000).unwrap();
    let region = scratch.region(4000).unwrap();
    let whole = random(&[1000], Kind::Float, 1);
    region.write_at(0, whole.copy()).unwrap();
    let slice = |start: i64| whole.narrow(0, start, 250);
    for start in [750, 0, 250] {
        let there = region.read_at(4 * start as u64, slice(start).zeros_like()).unwrap();
        let there = there.wait().unwrap();
        assert_eq!(there, slice(start));
        region.write_at(4 * start as u64, there + 1.0).unwrap();
    }
    let _ = whole.narrow(0, 0, 500).g_add_scalar_(1.0);
    let _ = whole.narrow(0, 750, 250).g_add_scalar_(1.0);
    let back = region.read_at(0, whole.zeros_like()).unwrap().wait().unwrap();
    assert_eq!(back, whole);
}

#[test]
fn the_file_has_no_name_while_it_is_used() {
    let folder = tempfile::tempdir().unwrap();
    let scratch = DiskScratch::create(folder.path(), 1 << 20).unwrap();
    let tensor = scratch.write(random(&[1000], Kind::Float, 1)).unwrap();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    let _read = scratch.read(tensor).unwrap();
}

#[test]
fn killed_ranks_leave_nothing_in_the_folder() {
    spawn_ranks_losing(2, 0, |rank: &TestRank| {
        let disk = rank.folder.join("disk");
        let pid_file = rank.folder.join("pid");
        if rank.rank == 0 {
            fs::create_dir(&disk).unwrap();
            let scratch = DiskScratch::create(&disk, 1 << 20).unwrap();
            let _tensor = scratch.write(random(&[100_000], Kind::Float, 1)).unwrap();
            // Renamed, so that the other rank never reads half a number.
            fs::write(rank.folder.join("pid.new"), Pid::this().to_string()).unwrap();
            fs::rename(rank.folder.join("pid.new"), &pid_file).unwrap();
            kill(Pid::this(), Signal::SIGKILL).unwrap();
        }
        let pid = loop {
            match fs::read_to_string(&pid_file) {
                Ok(pid) => break Pid::from_raw(pid.parse().unwrap()),
                Err(_) => sleep(Duration::from_millis(5)),
            }
        };
        while kill(pid, None).is_ok() {
            sleep(Duration::from_millis(5));
        }
        assert_eq!(fs::read_dir(&disk).unwrap().count(), 0);
    });
}

#[test]
fn a_disk_without_room_is_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let error = DiskScratch::create(folder.path(), 1 << 60).unwrap_err();
    let TrainError::ScratchSpace { dir, free_bytes, needed_bytes } = &error else {
        panic!("{error}");
    };
    assert_eq!((dir.as_path(), *needed_bytes), (folder.path(), 1 << 60));
    assert!(*free_bytes > 0 && *free_bytes < 1 << 60);
    assert!(error.hint().unwrap().contains("memory.disk_dir"));
    // A run that outgrows what it reserved hears of it from the call that needs the space.
    let scratch = DiskScratch::create(folder.path(), 0).unwrap();
    let error = scratch.region(1 << 60).unwrap_err();
    assert!(matches!(error, TrainError::Disk { action: "reserve", bytes, .. } if bytes == 1 << 60));
}

#[test]
fn a_folder_that_is_none_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing");
    let error = DiskScratch::create(&missing, 1).unwrap_err();
    assert_eq!(error.to_string(), format!("cannot make a scratch file in `{}`", missing.display()));
    assert!(matches!(error, TrainError::ScratchFolder { source, .. }
        if source.kind() == std::io::ErrorKind::NotFound));
}
