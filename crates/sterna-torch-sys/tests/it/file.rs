//! Tensors in files, against what a reader of the bytes sees.

use std::{io::ErrorKind, os::unix::fs::FileExt};

use sterna_torch_sys::file::{copy_from_bytes, read_tensor_at, write_tensor_at};
use tch::{Device, Kind, Tensor};

#[test]
fn bytes_of_a_file_become_a_tensor_whatever_their_alignment() {
    let values: Vec<f32> = (0..1000).map(|i| i as f32 / 7.0).collect();
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let expected = Tensor::from_slice(&values).view([10, 100]);
    for start in 0..4 {
        // A copy of the same bytes at each alignment.
        let shifted = [&vec![0; start], &bytes[..]].concat();
        for kind in [Kind::Float, Kind::BFloat16] {
            let mut target = Tensor::zeros([10, 100], (kind, Device::Cpu));
            copy_from_bytes(&mut target, &shifted[start..], Kind::Float).unwrap();
            assert!(target.equal(&expected.to_kind(kind)), "{start} {kind:?}");
        }
    }
    let mut short = Tensor::zeros([999], (Kind::Float, Device::Cpu));
    let error = copy_from_bytes(&mut short, &bytes[..], Kind::Float).unwrap_err();
    assert!(error.to_string().contains("`target` is [999] Float"), "{error}");
}

#[test]
fn bytes_of_every_dtype_come_back() {
    let file = tempfile::tempfile().unwrap();
    for (i, kind) in [
        Kind::Float,
        Kind::BFloat16,
        Kind::Half,
        Kind::Double,
        Kind::Int64,
        Kind::Uint8,
        Kind::Bool,
    ]
    .into_iter()
    .enumerate()
    {
        // NaN, infinities and minus zero keep their bits.
        let values = [1.5_f32, -0.0, f32::NAN, f32::INFINITY, 7.0, 3e-39, 255.0];
        let tensor = Tensor::from_slice(&values).to_kind(kind);
        let offset = 1000 * i as u64 + 3;
        write_tensor_at(&file, &tensor, offset).unwrap();
        let mut back = tensor.zeros_like();
        read_tensor_at(&file, &mut back, offset).unwrap();
        let bytes = |tensor: &Tensor| {
            let mut bytes = vec![0; tensor.numel() * kind.elt_size_in_bytes()];
            tensor.copy_data_u8(&mut bytes, tensor.numel());
            bytes
        };
        assert_eq!(bytes(&back), bytes(&tensor), "{kind:?}");
        let mut in_file = bytes(&tensor.zeros_like());
        file.read_exact_at(&mut in_file, offset).unwrap();
        assert_eq!(in_file, bytes(&tensor), "{kind:?}");
    }
}

#[test]
fn views_without_gaps_are_moved_and_others_are_refused() {
    let file = tempfile::tempfile().unwrap();
    let matrix = Tensor::arange(12, (Kind::Float, Device::Cpu)).view([3, 4]);
    // A view moves its own bytes only; a transposed one those in memory order.
    write_tensor_at(&file, &matrix.narrow(0, 1, 1), 0).unwrap();
    let mut row = Tensor::zeros([4], (Kind::Float, Device::Cpu));
    read_tensor_at(&file, &mut row, 0).unwrap();
    assert_eq!(row, Tensor::from_slice(&[4.0_f32, 5.0, 6.0, 7.0]));
    write_tensor_at(&file, &matrix.transpose(0, 1), 0).unwrap();
    let back = Tensor::zeros([3, 4], (Kind::Float, Device::Cpu));
    read_tensor_at(&file, &mut back.transpose(0, 1), 0).unwrap();
    assert_eq!(back, matrix);

    let columns = matrix.narrow(1, 0, 2);
    for gapped in [columns, row.expand([2, 4], false)] {
        let error = write_tensor_at(&file, &gapped, 0).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains("strides"), "{error}");
    }
    let empty = Tensor::zeros([0, 4], (Kind::Float, Device::Cpu));
    write_tensor_at(&file, &empty, 0).unwrap();
}

#[test]
fn a_file_that_ends_early_is_an_error() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(15).unwrap();
    let mut tensor = Tensor::zeros([4], (Kind::Float, Device::Cpu));
    let error = read_tensor_at(&file, &mut tensor, 0).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
}
