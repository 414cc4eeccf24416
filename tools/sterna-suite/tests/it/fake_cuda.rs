//! Sections on a device that is not the host: that they compare and time what the device computes, by each of its kernels.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use sterna_suite::context::Context;
use sterna_suite::{attention, ops};
use tch::Device;

/// A tiny run on the fake device, with no program to start.
fn context() -> Context {
    sterna_fake_cuda::install();
    Context {
        out: PathBuf::new(),
        archive: PathBuf::new(),
        inputs: PathBuf::new(),
        sterna: PathBuf::new(),
        baselines: PathBuf::new(),
        contracts: PathBuf::new(),
        python: PathBuf::new(),
        device: Device::Cuda(0),
        host_bytes: None,
        is_tiny: true,
        deadline: Instant::now() + Duration::from_mins(1),
    }
}

#[test]
fn fused_kernels_of_a_device_are_within_their_bounds() {
    let failures = ops::fused(context().device);
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn attention_of_a_device_is_checked_for_each_of_its_kernels() {
    let findings = ops::run_attention(&context()).unwrap();
    assert!(findings.failures.is_empty(), "{:#?}", findings.failures);
    let names: Vec<&str> = findings.tables[0].rows.iter().map(|row| row[0].as_str()).collect();
    assert!(names.iter().any(|name| name.ends_with("cuDNN")), "{names:?}");
    assert!(names.iter().any(|name| name.ends_with("against flash")), "{names:?}");
}

#[test]
fn both_attention_kernels_of_a_device_are_timed_at_each_length() {
    let findings = attention::run(&context()).unwrap();
    assert!(findings.failures.is_empty(), "{:#?}", findings.failures);
    let kernels: Vec<[&str; 2]> =
        findings.tables[0].rows.iter().map(|row| [row[0].as_str(), row[1].as_str()]).collect();
    assert_eq!(kernels, [["64", "flash"], ["64", "cuDNN"], ["128", "flash"], ["128", "cuDNN"]]);
    assert!(findings.notes[1].starts_with("Crossover: "), "{}", findings.notes[1]);
}
