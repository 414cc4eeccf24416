//! The signatures that both languages agree on. Nothing else in the workspace crosses into C++.

use crate::memory::{allocate, on_block, on_refusal, refusal, release};

#[cxx::bridge(namespace = "sterna")]
pub(crate) mod ffi {
    /// A borrowed tensor, so that a list of them can cross.
    struct TensorRef<'a> {
        tensor: &'a Tensor,
    }

    /// An owned tensor; null means "none".
    struct OptionalTensor {
        tensor: UniquePtr<Tensor>,
    }

    /// How a reduction combines what the ranks bring.
    #[repr(u8)]
    enum ReduceOp {
        Sum,
        Min,
        Max,
    }

    /// The numbers of one AdamW update.
    struct AdamW {
        lr: f64,
        beta1: f64,
        beta2: f64,
        weight_decay: f64,
        eps: f64,
    }

    /// Which keys a query of a call sees: key `j` if `0 <= i + keys_before - j < window`.
    struct VisibleKeys {
        keys_before: i64,
        window: i64,
    }

    /// The gradients of keys and values, for each query head that reads them.
    struct KeyGradients {
        d_k: UniquePtr<Tensor>,
        d_v: UniquePtr<Tensor>,
    }

    /// Memory of a device, bytes.
    struct DeviceMemory {
        allocated: u64,
        allocated_peak: u64,
        reserved: u64,
        reserved_peak: u64,
        free: u64,
        total: u64,
    }

    /// Documents of a pack, for a kernel that computes all of them, and what a query sees of its own.
    struct PackedLengths<'a> {
        cu_seqlens_q: &'a Tensor,
        cu_seqlens_k: &'a Tensor,
        max_q: i64,
        max_k: i64,
        left: i64,
        right: i64,
    }

    /// What a forward returns.
    struct AttentionOutput {
        o: UniquePtr<Tensor>,
        lse: UniquePtr<Tensor>,
    }

    /// What a backward returns.
    struct AttentionGradients {
        d_q: UniquePtr<Tensor>,
        d_k: UniquePtr<Tensor>,
        d_v: UniquePtr<Tensor>,
    }

    extern "Rust" {
        #[cxx_name = "allocate_block"]
        fn allocate(len: usize) -> *mut u8;
        #[cxx_name = "release_block"]
        unsafe fn release(data: *mut u8);
        fn refusal(len: usize) -> String;

        #[cxx_name = "on_device_block"]
        fn on_block(address: usize, len: i64, allocated: u64, reserved: u64, device_index: i32);
        #[cxx_name = "on_device_refusal"]
        fn on_refusal(asked: i64, allocated: u64, reserved: u64, device_index: i32);
    }

    unsafe extern "C++" {
        include!("attention.h");
        include!("autograd.h");
        include!("cuda_attention.h");
        include!("device.h");
        include!("device_books.h");
        include!("kernels.h");
        include!("memory.h");
        include!("optimizer.h");
        include!("process_group.h");
        include!("random.h");
        include!("rounding.h");
        include!("store.h");
        include!("streams.h");

        #[namespace = "at"]
        type Tensor;

        fn vjp(
            outputs: &[TensorRef],
            d_outputs: &[TensorRef],
            inputs: &[TensorRef],
            retain_graph: bool,
        ) -> Result<Vec<OptionalTensor>>;

        fn current_cuda_stream(device_index: i32) -> Result<u64>;
        fn libtorch_folder() -> Result<String>;

        fn install_cpu_allocator();
        fn rust_block(tensor: &Tensor) -> *const u8;

        fn set_device_allocator(settings: &str) -> Result<()>;
        fn init_devices() -> Result<()>;
        fn device_memory(device_index: i32) -> Result<DeviceMemory>;
        fn reset_device_peak(device_index: i32) -> Result<()>;
        fn set_device(device_index: i32) -> Result<()>;

        type Stream;
        type Event;

        fn current_stream(device_index: i32) -> Result<UniquePtr<Stream>>;
        fn new_stream(device_index: i32) -> Result<UniquePtr<Stream>>;
        fn exchange_stream(stream: &Stream) -> Result<UniquePtr<Stream>>;
        fn record_event(stream: &Stream, is_timed: bool) -> Result<UniquePtr<Event>>;
        fn wait_event(stream: &Stream, event: &Event) -> Result<()>;
        fn has_happened(event: &Event) -> Result<bool>;
        fn wait_on_host(event: &Event) -> Result<()>;
        fn elapsed_ms(start: &Event, end: &Event) -> Result<f64>;
        fn copy_on(stream: &Stream, target: &Tensor, source: &Tensor) -> Result<()>;

        fn keep_device_books();
        fn storage_address(tensor: &Tensor) -> usize;

        fn has_attention_kernel() -> bool;
        fn attention_forward(
            q: &Tensor,
            k: &Tensor,
            v: &Tensor,
            o: &Tensor,
            lse: &Tensor,
            visible: &VisibleKeys,
            scale: f64,
        ) -> Result<()>;
        fn attention_backward(
            d_o: &Tensor,
            q: &Tensor,
            k: &Tensor,
            v: &Tensor,
            o: &Tensor,
            lse: &Tensor,
            d_q: &Tensor,
            visible: &VisibleKeys,
            scale: f64,
        ) -> Result<KeyGradients>;

        fn flash_forward(
            q: &Tensor,
            k: &Tensor,
            v: &Tensor,
            lengths: &PackedLengths,
            scale: f64,
        ) -> Result<AttentionOutput>;
        fn flash_backward(
            d_o: &Tensor,
            q: &Tensor,
            k: &Tensor,
            v: &Tensor,
            o: &Tensor,
            lse: &Tensor,
            lengths: &PackedLengths,
            scale: f64,
        ) -> Result<AttentionGradients>;
        fn cudnn_forward(
            q: &Tensor,
            k: &Tensor,
            v: &Tensor,
            is_causal: bool,
            scale: f64,
        ) -> Result<AttentionOutput>;
        fn cudnn_backward(
            d_o: &Tensor,
            q: &Tensor,
            k: &Tensor,
            v: &Tensor,
            o: &Tensor,
            lse: &Tensor,
            is_causal: bool,
            scale: f64,
        ) -> Result<AttentionGradients>;

        fn fused_adamw_(
            param: &Tensor,
            grad: &Tensor,
            exp_avg: &Tensor,
            exp_avg_sq: &Tensor,
            step: i64,
            adamw: &AdamW,
        ) -> Result<()>;

        fn fill_normal(target: &Tensor, stream: u64, first: u64, std: f64) -> Result<()>;

        fn round_stochastically(
            source: &Tensor,
            target: &Tensor,
            key: u64,
            position: u64,
        ) -> Result<()>;

        type Store;

        fn tcp_store(
            host: &str,
            port: u16,
            listen_fd: i32,
            timeout_ms: i64,
        ) -> Result<UniquePtr<Store>>;
        fn prefixed(self: &Store, prefix: &str) -> Result<UniquePtr<Store>>;
        fn reconnected(self: &Store) -> Result<UniquePtr<Store>>;
        fn set(self: &Store, key: &str, value: &[u8]) -> Result<()>;
        fn get(self: &Store, key: &str) -> Result<Vec<u8>>;
        fn compare_set(self: &Store, key: &str, expected: &[u8], desired: &[u8])
        -> Result<Vec<u8>>;
        fn add(self: &Store, key: &str, amount: i64) -> Result<i64>;
        fn contains(self: &Store, key: &str) -> Result<bool>;

        type Work;

        fn is_completed(self: &Work) -> Result<bool>;
        fn wait_for(self: &Work, timeout_ms: i64) -> Result<bool>;

        type ProcessGroup;

        /// `constructor` is `sterna_new_nccl_process_group` of `cpp/nccl_library.h`.
        unsafe fn nccl_process_group(
            store: &Store,
            rank: i32,
            size: i32,
            timeout_ms: i64,
            constructor: *const c_char,
        ) -> Result<UniquePtr<ProcessGroup>>;
        fn abort(self: &ProcessGroup) -> Result<()>;
        fn shared(self: &ProcessGroup) -> Result<UniquePtr<ProcessGroup>>;
        fn gloo_process_group(
            store: &Store,
            rank: i32,
            size: i32,
            timeout_ms: i64,
            interface: &str,
            address: &str,
        ) -> Result<UniquePtr<ProcessGroup>>;
        fn all_reduce(
            self: &ProcessGroup,
            tensor: &Tensor,
            op: ReduceOp,
        ) -> Result<UniquePtr<Work>>;
        fn all_to_all_single(
            self: &ProcessGroup,
            output: &Tensor,
            input: &Tensor,
            output_splits: &[i64],
            input_splits: &[i64],
        ) -> Result<UniquePtr<Work>>;
        fn all_gather_into_tensor(
            self: &ProcessGroup,
            output: &Tensor,
            input: &Tensor,
        ) -> Result<UniquePtr<Work>>;
        fn reduce_scatter_tensor(
            self: &ProcessGroup,
            output: &Tensor,
            input: &Tensor,
            op: ReduceOp,
        ) -> Result<UniquePtr<Work>>;
        fn broadcast(self: &ProcessGroup, tensor: &Tensor, root: i64) -> Result<UniquePtr<Work>>;
        fn barrier(self: &ProcessGroup) -> Result<UniquePtr<Work>>;
    }
}
