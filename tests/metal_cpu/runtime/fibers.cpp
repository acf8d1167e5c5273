// Stacks and the switch between them: what a coroutine is made of, in the two instruction sets the tests run on.
#include "runtime.h"

#include <string.h>

#ifdef __APPLE__
#define SYMBOL(name) "_" #name
#else
#define SYMBOL(name) #name
#endif

// metal_cpu_switch_stack(save, load): push what the calling convention preserves, swap stacks, pop.
#if defined(__x86_64__)
asm(".text\n.globl " SYMBOL(metal_cpu_switch_stack) "\n" SYMBOL(metal_cpu_switch_stack) ":\n"
    "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
    "movq %rsp, (%rdi)\nmovq %rsi, %rsp\n"
    "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nretq\n");
constexpr int saved_words = 7, return_word = 6, reserved_words = 1;  // one word: a function expects the stack as a call leaves it
#elif defined(__aarch64__)
asm(".text\n.p2align 2\n.globl " SYMBOL(metal_cpu_switch_stack) "\n" SYMBOL(metal_cpu_switch_stack) ":\n"
    "sub sp, sp, #160\n"
    "stp x19, x20, [sp, #0]\nstp x21, x22, [sp, #16]\nstp x23, x24, [sp, #32]\nstp x25, x26, [sp, #48]\n"
    "stp x27, x28, [sp, #64]\nstp x29, x30, [sp, #80]\n"
    "stp d8, d9, [sp, #96]\nstp d10, d11, [sp, #112]\nstp d12, d13, [sp, #128]\nstp d14, d15, [sp, #144]\n"
    "mov x2, sp\nstr x2, [x0]\nmov sp, x1\n"
    "ldp x19, x20, [sp, #0]\nldp x21, x22, [sp, #16]\nldp x23, x24, [sp, #32]\nldp x25, x26, [sp, #48]\n"
    "ldp x27, x28, [sp, #64]\nldp x29, x30, [sp, #80]\n"
    "ldp d8, d9, [sp, #96]\nldp d10, d11, [sp, #112]\nldp d12, d13, [sp, #128]\nldp d14, d15, [sp, #144]\n"
    "add sp, sp, #160\nret\n");
constexpr int saved_words = 20, return_word = 11, reserved_words = 0;
#else
#error "the fibers know x86-64 and arm64"
#endif

void* fresh_stack(uint8_t* top, void (*entry)()) {
  void** sp = (void**)top - reserved_words - saved_words;
  memset(sp, 0, (saved_words + reserved_words) * sizeof(void*));
  sp[return_word] = (void*)entry;
  return sp;
}
