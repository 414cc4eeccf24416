// Flows of control that take turns on one thread of the host.
#pragma once

#include <cstddef>
#include <cstdint>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#if defined(__clang__)
#define STERNA_OPAQUE __attribute__((naked, noinline))
#else
// GCC would look into it for registers that it leaves alone, and find all that its assembly does not name.
#define STERNA_OPAQUE __attribute__((naked, noinline, noipa))
#endif

namespace emulate {

#if defined(__x86_64__)

// Where a flow goes on. swapcontext would ask the kernel for the signal mask at each turn, which was most of a kernel's time.
class Flow {
 public:
  // Has `entry` begin at the flow's next turn. It must not return.
  void prepare(char* stack, size_t len, void (*entry)()) {
    const auto end = (reinterpret_cast<uintptr_t>(stack) + len) & ~uintptr_t{15};
    auto* top = reinterpret_cast<void**>(end);
    *--top = nullptr;  // A function begins 8 bytes below a multiple of 16, at the address to return to.
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < kSaved; ++i) *--top = nullptr;
    top_ = top;
  }

  // Ends this flow's turn and begins that of `to`; returns at this one's next turn.
  void switch_to(Flow& to) { exchange(&top_, to.top_); }

 private:
  static constexpr int kSaved = 6;

  // The rounding modes, which a call must keep too, are the same in all flows.
  STERNA_OPAQUE static void exchange(void** /*from: rdi*/, void* /*to: rsi*/) {
    asm volatile(
        "push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15\n"
        "mov %rsp, (%rdi)\n"
        "mov %rsi, %rsp\n"
        "pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp\n"
        "ret\n");
  }

  void* top_ = nullptr;
};

#else

class Flow {
 public:
  void prepare(char* stack, size_t len, void (*entry)()) {
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack;
    context_.uc_stack.ss_size = len;
    context_.uc_link = nullptr;
    makecontext(&context_, entry, 0);
  }

  void switch_to(Flow& to) { swapcontext(&context_, &to.context_); }

 private:
  ucontext_t context_{};
};

#endif

}  // namespace emulate
