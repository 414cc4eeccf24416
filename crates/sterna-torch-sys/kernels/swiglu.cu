// silu(gate) * up and its gradients; see crates/sterna-ops/src/swiglu.rs.
#include "common.cuh"

// Rounded to T like the result of libtorch's silu.
template <typename T>
__device__ inline float silu(float x) {
  return rounded<T>(x / (1.0F + expf(-x)));
}

// Calls body(i) for 0..len; the packs of 16 bytes that body_of_pack(i) takes come first, if all pointers are aligned.
template <typename T, typename Body, typename PackBody>
__device__ inline void for_each(Int64 len, bool aligned, Body body, PackBody body_of_pack) {
  const Int64 num_packs = aligned ? len / Pack<T>::kLen : 0;
  for (Int64 i = first_thread(); i < num_packs; i += num_threads()) {
    body_of_pack(i);
  }
  for (Int64 i = num_packs * Pack<T>::kLen + first_thread(); i < len; i += num_threads()) {
    body(i);
  }
}

template <typename T>
__device__ inline T swiglu(T gate, T up) {
  return narrow<T>(silu<T>(widen(gate)) * widen(up));
}

template <typename T>
__device__ inline void swiglu_gradients(T d_y, T gate, T up, T& d_gate, T& d_up) {
  const float x = widen(gate);
  const float sigmoid = 1.0F / (1.0F + expf(-x));
  const float d_silu = rounded<T>(widen(d_y) * widen(up));
  d_gate = narrow<T>(d_silu * sigmoid * (1.0F + x * (1.0F - sigmoid)));
  d_up = narrow<T>(silu<T>(x) * widen(d_y));
}

template <typename T>
__device__ void swiglu_forward(const T* gate, const T* up, T* y, Int64 len) {
  for_each<T>(
      len, is_aligned(gate) && is_aligned(up) && is_aligned(y), [&](Int64 i) { y[i] = swiglu(gate[i], up[i]); },
      [&](Int64 i) {
        const Pack<T> gates = reinterpret_cast<const Pack<T>*>(gate)[i];
        const Pack<T> ups = reinterpret_cast<const Pack<T>*>(up)[i];
        Pack<T> ys;
        for (int j = 0; j < Pack<T>::kLen; ++j) {
          ys.at[j] = swiglu(gates.at[j], ups.at[j]);
        }
        reinterpret_cast<Pack<T>*>(y)[i] = ys;
      });
}

template <typename T>
__device__ void swiglu_backward(const T* d_y, const T* gate, const T* up, T* d_gate, T* d_up, Int64 len) {
  const bool aligned =
      is_aligned(d_y) && is_aligned(gate) && is_aligned(up) && is_aligned(d_gate) && is_aligned(d_up);
  for_each<T>(
      len, aligned, [&](Int64 i) { swiglu_gradients(d_y[i], gate[i], up[i], d_gate[i], d_up[i]); },
      [&](Int64 i) {
        const Pack<T> d_ys = reinterpret_cast<const Pack<T>*>(d_y)[i];
        const Pack<T> gates = reinterpret_cast<const Pack<T>*>(gate)[i];
        const Pack<T> ups = reinterpret_cast<const Pack<T>*>(up)[i];
        Pack<T> d_gates;
        Pack<T> d_ups;
        for (int j = 0; j < Pack<T>::kLen; ++j) {
          swiglu_gradients(d_ys.at[j], gates.at[j], ups.at[j], d_gates.at[j], d_ups.at[j]);
        }
        reinterpret_cast<Pack<T>*>(d_gate)[i] = d_gates;
        reinterpret_cast<Pack<T>*>(d_up)[i] = d_ups;
      });
}

#define STERNA_SWIGLU(NAME, T)                                                                                         \
  extern "C" __global__ void __launch_bounds__(kMaxThreads)                                                            \
      swiglu_forward_##NAME(const T* gate, const T* up, T* y, Int64 len) {                                             \
    swiglu_forward<T>(gate, up, y, len);                                                                               \
  }                                                                                                                    \
  extern "C" __global__ void __launch_bounds__(kMaxThreads)                                                            \
      swiglu_backward_##NAME(const T* d_y, const T* gate, const T* up, T* d_gate, T* d_up, Int64 len) {                \
    swiglu_backward<T>(d_y, gate, up, d_gate, d_up, len);                                                              \
  }
STERNA_SWIGLU(bf16, Bf16)
STERNA_SWIGLU(f32, float)
