//! Calls that the attention operators of a real device refuse, or get wrong in silence. What they compute is tested in `sterna-ops`.

use sterna_torch_sys::Error;
use sterna_torch_sys::cuda_attention::{
    PackedLengths, cudnn_backward, cudnn_forward, flash_backward, flash_forward,
};
use tch::{Device, Kind, Tensor};

use crate::{GPU, alone};

fn random(tokens: i64, heads: i64, head_dim: i64) -> Tensor {
    Tensor::randn([tokens, heads, head_dim], (Kind::Float, Device::Cpu))
        .to_kind(Kind::BFloat16)
        .to_device(GPU)
}

fn ends(ends: &[i32]) -> Tensor {
    Tensor::from_slice(ends).to_device(GPU)
}

/// Two documents of 4 and 6 tokens.
fn lengths() -> PackedLengths {
    PackedLengths {
        cu_seqlens_q: ends(&[0, 4, 10]),
        cu_seqlens_k: ends(&[0, 4, 10]),
        max_q: 6,
        max_k: 6,
        left: None,
        right: Some(0),
    }
}

#[track_caller]
fn assert_refused<T>(result: Result<T, Error>, reason: &str) {
    let message = result.err().expect("the call is refused").to_string();
    assert!(message.contains(reason), "{message}");
}

#[test]
fn packs_that_do_not_fit_their_lengths_are_refused() {
    let _alone = alone();
    let (q, k) = (random(10, 4, 64), random(10, 2, 64));
    let forward = |lengths: &PackedLengths| flash_forward([&q, &k, &k], lengths, 0.1);
    assert!(forward(&lengths()).is_ok());
    let wide = Tensor::from_slice(&[0_i64, 4, 10]).to_device(GPU);
    for (changed, reason) in [
        (PackedLengths { cu_seqlens_q: wide, ..lengths() }, "int32"),
        (PackedLengths { cu_seqlens_q: ends(&[0, 4, 9]), ..lengths() }, "must cover 10 tokens"),
        (
            PackedLengths { cu_seqlens_k: ends(&[0, 10]), max_k: 10, ..lengths() },
            "as many documents",
        ),
        (PackedLengths { max_q: 5, ..lengths() }, "a document of 6 tokens"),
        (PackedLengths { max_k: 5, ..lengths() }, "a document of 6 tokens"),
    ] {
        assert_refused(forward(&changed), reason);
    }
}

#[test]
fn operands_that_no_fused_kernel_takes_are_refused() {
    let _alone = alone();
    let (q, k) = (random(10, 4, 64), random(10, 2, 64));
    let flash = |q: &Tensor, k: &Tensor| flash_forward([q, k, k], &lengths(), 0.1);
    let cudnn = |q: &Tensor, k: &Tensor| cudnn_forward([q, k, k], true, 0.1);
    assert!(cudnn(&q, &k).is_ok());
    let single = |x: &Tensor| x.to_kind(Kind::Float);
    assert_refused(flash(&single(&q), &single(&k)), "only fp16 and bf16");
    assert_refused(cudnn(&single(&q), &single(&k)), "only fp16 and bf16");
    assert_refused(flash(&q, &random(10, 3, 64)), "must divide");
    assert_refused(cudnn(&q, &random(10, 3, 64)), "must divide");
    assert_refused(flash(&random(10, 4, 264), &random(10, 2, 264)), "head size 264");
    assert_refused(cudnn(&random(10, 4, 136), &random(10, 2, 136)), "head size 136");
    // A plan for one key does not exist.
    let one = k.narrow(0, 0, 1);
    assert_refused(cudnn_forward([&q, &one, &one], false, 0.1), "sequence length 1");
}

#[test]
fn operands_that_are_not_aligned_are_refused_before_a_kernel_fails() {
    let _alone = alone();
    let (q, k) = (random(10, 4, 64), random(10, 2, 64));
    let shifted = random(10, 4, 72).narrow(2, 1, 64);
    let odd_rows = random(10, 2, 68).narrow(2, 0, 64);
    let reason = "multiple of 16 bytes";
    assert_refused(flash_forward([&shifted, &k, &k], &lengths(), 0.1), reason);
    assert_refused(flash_forward([&q, &odd_rows, &k], &lengths(), 0.1), reason);
    assert_refused(cudnn_forward([&q, &k, &odd_rows], true, 0.1), reason);
    let (o, lse) = flash_forward([&q, &k, &k], &lengths(), 0.1).unwrap();
    let inputs = [&q, &shifted, &k, &k, &o, &lse];
    assert_refused(flash_backward(inputs, &lengths(), 0.1), reason);
    assert_refused(cudnn_backward(inputs, true, 0.1), reason);
}

#[test]
fn a_backward_takes_any_strides_of_what_belongs_to_the_output() {
    let _alone = alone();
    let (q, k, d_o) = (random(10, 4, 64), random(10, 2, 64), random(10, 4, 64));
    let (o, lse) = cudnn_forward([&q, &k, &k], true, 0.1).unwrap();
    let expected = cudnn_backward([&d_o, &q, &k, &k, &o, &lse], true, 0.1).unwrap();
    let heads_first = |x: &Tensor| x.transpose(0, 1).contiguous().transpose(0, 1);
    // With the strides of the first call a plan has been found that is for those alone.
    let strided_lse = lse.tr().contiguous().tr();
    let inputs = [&heads_first(&d_o), &q, &k, &k, &heads_first(&o), &strided_lse];
    let actual = cudnn_backward(inputs, true, 0.1).unwrap();
    for (a, b) in actual.iter().zip(&expected) {
        assert!(a.equal(b));
    }
}

#[test]
fn a_log_sum_exp_of_other_queries_is_refused() {
    let _alone = alone();
    let (q, k) = (random(10, 4, 64), random(10, 2, 64));
    let (o, lse) = flash_forward([&q, &k, &k], &lengths(), 0.1).unwrap();
    assert_eq!((lse.size(), lse.kind()), (vec![4, 10], Kind::Float));
    for wrong in [lse.tr(), lse.to_kind(Kind::BFloat16), lse.narrow(1, 0, 9)] {
        let inputs = [&o, &q, &k, &k, &o, &wrong];
        assert_refused(flash_backward(inputs, &lengths(), 0.1), "log-sum-exp");
        assert_refused(cudnn_backward(inputs, true, 0.1), "log-sum-exp");
    }
}
