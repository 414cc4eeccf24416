"""What Sterna takes for granted of libtorch 2.11.0 on a GPU, one call at a time, against double precision.

A wrong assumption is named here before the engine runs into it. Takes under 25 s on an H200. Writes a JSON list to the file that is
its argument after each contract: `name`, `status` (`holds`, `broken`, `skipped`), `detail`, `seconds`. Without a GPU all but the
schemas are skipped.
"""

import json
import math
import mmap
import os
import sys
import threading
import time
import traceback

import torch

aten = torch.ops.aten
HAS_GPU = torch.cuda.is_available()
BF16 = torch.bfloat16
# bf16 rounds by 2^-9; probabilities and their gradients are rounded before they are multiplied.
PRODUCT, ATTENTION = 3e-3, 1.2e-2
RESULTS = []


class Skipped(Exception):
    pass


def expect(condition, text):
    if not condition:
        raise AssertionError(text)


def close(name, actual, expected, bound):
    """Relative error in the l2 norm; the shapes are part of the contract."""
    expect(actual.shape == expected.shape, f"{name} is {list(actual.shape)}, expected {list(expected.shape)}")
    actual, expected = actual.double(), expected.double().to(actual.device)
    error = ((actual - expected).norm() / expected.norm()).item()
    expect(error <= bound, f"{name} [{', '.join(map(str, actual.shape))}]: error {error:.1e} is above {bound:.1e}")
    return f"{name} {error:.1e}"


def randn(*size, dtype=BF16, scale=1.0):
    return (torch.randn(*size, dtype=torch.float32, device="cuda") * scale).to(dtype)


def reference(q, k, v, documents, scale, window=None, d_o=None):
    """Output, log-sum-exp [heads, tokens] and gradients of causal attention in double precision; q [s, n, h], k and v [s, kv, h]."""
    leaves = [x.detach().double().requires_grad_(True) for x in (q, k, v)]
    group = q.shape[1] // k.shape[1]
    outputs, sums = [], []
    for start, end in documents:
        a, b, c = (x[start:end] for x in leaves)
        b, c = (x.repeat_interleave(group, dim=1) for x in (b, c))
        scores = torch.einsum("inh,jnh->nij", a, b) * scale
        i = torch.arange(end - start, device=q.device)
        seen = i[:, None] >= i[None, :]
        if window is not None:
            seen &= i[:, None] - i[None, :] <= window
        scores = scores.masked_fill(~seen, -math.inf)
        sums.append(scores.logsumexp(-1))
        outputs.append(torch.einsum("nij,jnh->inh", scores.softmax(-1), c))
    o, lse = torch.cat(outputs), torch.cat(sums, dim=1)
    gradients = torch.autograd.grad(o, leaves, d_o.double()) if d_o is not None else None
    return o.detach(), lse.detach(), gradients


def qkv(tokens, queries, kvs, dim):
    """Heads as the engine narrows them from one product: strided, the heads of a token one after the other."""
    fused = randn(tokens, queries + 2 * kvs, dim)
    return fused[:, :queries], fused[:, queries : queries + kvs], fused[:, queries + kvs :]


def no_random():
    return torch.empty(2, dtype=torch.int64, device="cuda")


SCHEMAS = {
    "_flash_attention_forward": "query key value cum_seq_q cum_seq_k max_q max_k dropout_p is_causal return_debug_mask scale window_size_left window_size_right seqused_k alibi_slopes",
    "_flash_attention_backward": "grad_out query key value out logsumexp cum_seq_q cum_seq_k max_q max_k dropout_p is_causal rng_state unused scale window_size_left window_size_right",
    "_scaled_dot_product_cudnn_attention": "query key value attn_bias compute_log_sumexp dropout_p is_causal return_debug_mask scale",
    "_scaled_dot_product_cudnn_attention_backward": "grad_out query key value out logsumexp philox_seed philox_offset attn_bias cum_seq_q cum_seq_k max_q max_k dropout_p is_causal scale",
    "addmm.dtype_out": "self mat1 mat2 out_dtype beta alpha out",
    "_fused_adamw_": "self grads exp_avgs exp_avg_sqs max_exp_avg_sqs state_steps lr beta1 beta2 weight_decay eps amsgrad maximize grad_scale found_inf",
}


def schemas():
    """The arguments of each operator that is called by position."""
    wrong = []
    for name, arguments in SCHEMAS.items():
        packet, _, overload = name.partition(".")
        try:
            schema = getattr(getattr(aten, packet), overload or "default")._schema
        except AttributeError:
            wrong.append(f"there is no aten::{name}")
            continue
        found = " ".join(argument.name for argument in schema.arguments)
        if found != arguments:
            wrong.append(f"aten::{name} takes ({found})")
    expect(not wrong, "; ".join(wrong))
    return f"{len(SCHEMAS)} operators"


def weight_gradient_in_place():
    """`addmm.dtype_out` adds a product of bf16 to fp32 that is its own output."""
    details = []
    for tokens in (820, 6656):
        d_y, x = randn(tokens, 1024), randn(tokens, 512)
        before = randn(1024, 512, dtype=torch.float32)
        d_weight = before.clone()
        aten.addmm.dtype_out(d_weight, d_y.t(), x, torch.float32, out=d_weight)
        expected = before.double() + d_y.double().t() @ x.double()
        # fp32 sums of thousands of products, cut where tensor cores cut them; a sum that was rounded to bf16 is off by 1e-3.
        details.append(close(f"K={tokens}", d_weight, expected, 1e-4))
    return ", ".join(details)


def flash_packs():
    """Flash attention of a pack with grouped, narrowed heads: layouts of the log-sum-exp and the gradients, and a window."""
    documents, queries, kvs, dim = [(0, 300), (300, 301), (301, 812)], 8, 2, 128
    q, k, v = qkv(812, queries, kvs, dim)
    d_o, scale = randn(812, queries, dim), dim**-0.5
    cu = torch.tensor([0, 300, 301, 812], dtype=torch.int32, device="cuda")
    details = []
    for window in (None, 63):
        o, lse, *_ = aten._flash_attention_forward(q, k, v, cu, cu, 511, 511, 0.0, window is None, False, scale=scale, window_size_left=window, window_size_right=None if window is None else 0)
        expected, sums, (d_q, d_k, d_v) = reference(q, k, v, documents, scale, window, d_o)
        name = "all" if window is None else "window"
        details.append(close(f"{name}: o", o, expected, ATTENTION))
        details.append(close("lse", lse, sums, 1e-3))
        gradients = aten._flash_attention_backward(d_o, q, k, v, o, lse.contiguous(), cu, cu, 511, 511, 0.0, window is None, no_random(), no_random(), scale=scale, window_size_left=window, window_size_right=None if window is None else 0)
        for what, actual, expected in zip(("d_q", "d_k", "d_v"), gradients, (d_q, d_k, d_v)):
            details.append(close(what, actual, expected, ATTENTION))
    return ", ".join(details)


def batched(x):
    return x.unsqueeze(0).transpose(1, 2)


def cudnn_document():
    """cuDNN's attention of one document with grouped, narrowed heads, causal and not, without a random state."""
    details = []
    for is_causal in (True, False):
        queries, kvs, dim, tokens = 8, 2, 128, 1024
        q, k, v = qkv(tokens, queries, kvs, dim)
        d_o, scale = randn(tokens, queries, dim), dim**-0.5
        results = aten._scaled_dot_product_cudnn_attention(batched(q), batched(k), batched(v), None, True, 0.0, is_causal, False, scale=scale)
        o, lse = results[0].squeeze(0).transpose(0, 1), results[1].squeeze(-1).squeeze(0)
        if is_causal:
            expected, sums, gradients = reference(q, k, v, [(0, tokens)], scale, None, d_o)
        else:
            leaves = [x.detach().double().requires_grad_(True) for x in (q, k, v)]
            b, c = (x.repeat_interleave(queries // kvs, dim=1) for x in leaves[1:])
            scores = torch.einsum("inh,jnh->nij", leaves[0], b) * scale
            expected, sums = torch.einsum("nij,jnh->inh", scores.softmax(-1), c), scores.logsumexp(-1)
            gradients = torch.autograd.grad(expected, leaves, d_o.double())
        name = "causal" if is_causal else "all"
        details.append(close(f"{name}: o", o, expected, ATTENTION))
        details.append(close("lse", lse, sums, 1e-3))
        stats = lse.contiguous().unsqueeze(0).unsqueeze(-1)
        found = aten._scaled_dot_product_cudnn_attention_backward(batched(d_o.contiguous()), batched(q), batched(k), batched(v), batched(o.contiguous()), stats, no_random(), no_random(), None, None, None, tokens, tokens, 0.0, is_causal, scale=scale)
        for what, actual, expected in zip(("d_q", "d_k", "d_v"), found, gradients):
            details.append(close(what, actual.squeeze(0).transpose(0, 1), expected, ATTENTION))
    return ", ".join(details)


def rows_of_long(tokens, queries, kvs, has_backward):
    """Rows of a long document's output against their definition, computed row by row, and whether the gradients are finite and right there."""
    dim = 128
    q, k, v = (randn(tokens, heads, dim) for heads in (queries, kvs, kvs))
    scale = dim**-0.5
    results = aten._scaled_dot_product_cudnn_attention(batched(q), batched(k), batched(v), None, True, 0.0, True, False, scale=scale)
    o, lse = results[0].squeeze(0).transpose(0, 1), results[1].squeeze(-1).squeeze(0)
    rows, heads = [0, 1, tokens // 2, tokens - 1], [0, queries - 1]
    worst = {}

    def check(name, row, actual, expected, bound):
        """Row by row: the first ones are far larger than the others."""
        error = ((actual.double() - expected).norm() / expected.norm()).item()
        expect(error <= bound, f"{name} of token {row} of {tokens}: error {error:.1e} is above {bound:.1e}")
        worst[name] = max(worst.get(name, 0.0), error)

    for row in rows:
        for head in heads:
            kv = head * kvs // queries
            scores = (k[: row + 1, kv].double() @ q[row, head].double()) * scale
            check("o", row, o[row, head], scores.softmax(0) @ v[: row + 1, kv].double(), 2 * ATTENTION)
            difference = abs(lse[head, row].item() - scores.logsumexp(0).item())
            expect(difference <= 1e-2, f"lse of token {row} of {tokens} is off by {difference:.1e}")
    if has_backward:
        d_o = randn(tokens, queries, dim)
        stats = lse.contiguous().unsqueeze(0).unsqueeze(-1)
        d_q, d_k, d_v = aten._scaled_dot_product_cudnn_attention_backward(batched(d_o), batched(q), batched(k), batched(v), batched(o.contiguous()), stats, no_random(), no_random(), None, None, None, tokens, tokens, 0.0, True, scale=scale)
        for row in rows[1:]:
            for head in heads:
                kv = head * kvs // queries
                keys, values = k[: row + 1, kv].double(), v[: row + 1, kv].double()
                p = ((keys @ q[row, head].double()) * scale).softmax(0)
                d_p = values @ d_o[row, head].double()
                d_s = p * (d_p - (p * d_p).sum())
                check("d_q", row, d_q[0, head, row], (d_s @ keys) * scale, 3 * ATTENTION)
        # The last key has the last query alone.
        p_last = [((k[:, 0].double() @ q[-1, h].double()) * scale).softmax(0)[-1] for h in range(queries // kvs)]
        d_v_last = sum(p * d_o[-1, h].double() for h, p in enumerate(p_last))
        check("d_v", tokens - 1, d_v[0, 0, -1], d_v_last, 2 * ATTENTION)
    return ", ".join(f"{name} {error:.1e}" for name, error in worst.items())


def cudnn_at_2_29_elements():
    """128K tokens of 32 heads, forward and backward: 2^29 elements of queries in one call."""
    return rows_of_long(131072, 32, 8, True)


def cudnn_at_a_million_tokens():
    """1M tokens of 4 heads, forward: 2^29 elements, offsets within a head beyond 2^26."""
    return rows_of_long(1 << 20, 4, 1, False)


def expandable_segments():
    """Memory given back grows into larger tensors: what a process has reserved stays near its peak."""
    settings = torch.cuda.memory._set_allocator_settings
    torch.cuda.empty_cache()
    settings("expandable_segments:True")
    torch.cuda.reset_peak_memory_stats()
    for gib in range(1, 9):
        x = torch.empty(gib << 30, dtype=torch.uint8, device="cuda")
        del x
    reserved = torch.cuda.memory_stats()["reserved_bytes.all.peak"]
    expect(reserved < 9 << 30, f"tensors of 1 to 8 GiB, one at a time, reserved {reserved / 2**30:.1f} GiB")
    return f"{reserved / 2**30:.2f} GiB reserved for tensors of up to 8"


def memory_reporting():
    """The allocator tells the profiler of each block, in multiples of 512 bytes, when it is taken and when it is given back."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        x = torch.empty(1000, dtype=torch.float32, device="cuda")
        del x
    events = json.loads(_exported(trace))["traceEvents"]
    of_gpu = [event["args"]["Bytes"] for event in events if event.get("name") == "[memory]" and event["args"]["Device Type"] == 1]
    expect(4096 in of_gpu and -4096 in of_gpu, f"a tensor of 4,000 bytes was told as {of_gpu}")
    return "4,000 bytes are told as 4,096, and as -4,096"


def _exported(trace):
    import tempfile

    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        trace.export_chrome_trace(file.name)
        with open(file.name) as text:
            return text.read()


def pinned_memory():
    """Memory that all cores populate and the driver then registers; copies from it do not wait, and their speed."""
    # Less than many a machine shows at its start, which refuses what is larger than all it has.
    length, cores = 2 << 30, os.cpu_count() or 1
    memory = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    tensor = torch.frombuffer(memory, dtype=torch.uint8)
    share = length // cores // (2 << 20) * (2 << 20)
    ctypes_populate(tensor.data_ptr(), length, share)
    populated = time.time()
    start = populated
    status = torch.cuda.cudart().cudaHostRegister(tensor.data_ptr(), length, 0)
    registered = time.time() - start
    expect(int(status) == 0, f"cudaHostRegister of 2 GiB: {status}")
    expect(tensor.is_pinned(), "libtorch does not take registered memory for pinned")
    target = torch.empty(length, dtype=torch.uint8, device="cuda")
    target.copy_(tensor, non_blocking=True)
    torch.cuda.synchronize()
    times = []
    for source, to in ((tensor, target), (target, tensor)):
        start = time.time()
        to.copy_(source, non_blocking=True)
        launched = time.time() - start
        torch.cuda.synchronize()
        times.append((time.time() - start, launched))
    rates = [length / seconds / 1e9 for seconds, _ in times]
    torch.cuda.cudart().cudaHostUnregister(tensor.data_ptr())
    detail = f"populated in {POPULATED[0]:.2f} s by {cores} cores, registered in {registered:.2f} s; {rates[0]:.0f} GB/s to the device, {rates[1]:.0f} back"
    expect(all(launched < 0.2 * seconds for seconds, launched in times), f"a copy waits for itself: {detail}")
    return detail


POPULATED = [0.0]


def ctypes_populate(address, length, share):
    import ctypes

    madvise = ctypes.CDLL(None, use_errno=True).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    populate_write, failed = 23, []

    def populate(offset):
        if madvise(address + offset, min(share, length - offset), populate_write) != 0:
            failed.append(os.strerror(ctypes.get_errno()))

    start = time.time()
    threads = [threading.Thread(target=populate, args=(offset,)) for offset in range(0, length, share)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    POPULATED[0] = time.time() - start
    expect(not failed, f"MADV_POPULATE_WRITE: {failed[:1]}")


def fused_adamw():
    """The fused AdamW takes fp32 masters with a step in fp32 on the device, and is AdamW."""
    p, g = (randn(1000, dtype=torch.float32) for _ in range(2))
    m, s = torch.zeros_like(p), torch.zeros_like(p)
    expected = p.double().clone()
    aten._fused_adamw_([p], [g], [m], [s], [], [torch.tensor(1.0, device="cuda")], lr=0.1, beta1=0.9, beta2=0.95, weight_decay=0.01, eps=1e-8, amsgrad=False, maximize=False)
    expected = expected * (1 - 0.1 * 0.01) - 0.1 * g.double() / (g.double().abs() + 1e-8)
    return close("param", p, expected, 1e-6)


def sums_in_single_precision():
    """Partial sums of bf16 products are added in fp32 once that is asked for."""
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    a, b = randn(256, 65536), randn(65536, 256)
    return close("K=65536", a @ b, a.double() @ b.double(), PRODUCT)


CONTRACTS = [
    schemas,
    weight_gradient_in_place,
    sums_in_single_precision,
    flash_packs,
    cudnn_document,
    fused_adamw,
    memory_reporting,
    expandable_segments,
    cudnn_at_2_29_elements,
    cudnn_at_a_million_tokens,
    pinned_memory,
]


def main(path):
    torch.manual_seed(0)
    for contract in CONTRACTS:
        start = time.time()
        try:
            if contract is not schemas and not HAS_GPU:
                raise Skipped("it needs a GPU")
            status, detail = "holds", contract()
        except Skipped as why:
            status, detail = "skipped", str(why)
        except Exception as error:
            # The first line of libtorch's text, and where it was raised: the rest are addresses.
            lines = str(error).splitlines() or [type(error).__name__]
            raised = next((line for line in lines if "Exception raised from" in line), "")
            at = traceback.extract_tb(error.__traceback__)[-1]
            status, detail = "broken", f"{lines[0]} {raised} (line {at.lineno} of contracts.py)".replace("  ", " ")
        RESULTS.append({"name": contract.__name__, "what": (contract.__doc__ or "").strip(), "status": status, "detail": detail, "seconds": round(time.time() - start, 2)})
        with open(path + ".new", "w") as file:
            json.dump(RESULTS, file, indent=1)
        os.replace(path + ".new", path)
        print(f"{contract.__name__}: {status}, {detail}", flush=True)
        if HAS_GPU:
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main(sys.argv[1])
