# Every instruction of the kernel that is not compiled from Rust.
#
# Called by the CPU (gates, SYSCALL), by the VMM (first instruction) and by
# trap.rs (enter_user, leave_user). The frame pushed here is trap.rs's
# TrapFrame, the same in both privilege modes and for every way in:
#
#   r15 r14 r13 r12 rbp rbx | r11 r10 r9 r8 rdi rsi rdx rcx rax
#   vector cr2 error rip cs rflags rsp ss
#
# Ring-3 mode leans on three measured facts of hosts that interpret ring 0
# (docs/platforms.md): SYSCALL arrives at LSTAR in ring 3, gates may lead to
# ring-3 code segments, IST works from ring 3 to ring 3.

    .set USER_CS, 0x33
    .set USER_SS, 0x2b
    .set VECTOR_SYSCALL, 0x100
    .set FRAME_BYTES, 23 * 8            # asserted in trap.rs

# The stacks of a core and, behind them, what belongs to it: from any of the
# stacks it is found by clearing the low bits of RSP, in both modes. The blocks
# of the cores from 1 on lie behind the image (KernelHeader::shared).
    .set MAX_CORES, 32                  # this and the stride asserted in cores.rs
    .set CORE_STRIDE, 0x20000
    .set BOOT_TOP, 0x8000
    .set TRAP_TOP, 0x10000
    .set IST1_TOP, 0x14000
    .set IST2_TOP, 0x18000
    .set IST3_TOP, 0x1c000
    .set IST4_TOP, 0x1f000
    .set USER_RSP, 0x1f000              # of the program, at a system call
    .set MAIN_RSP, 0x1f008              # in enter_user

# ---------------------------------------------------------------- header ----
    .section .boot_header, "ax"
__header_start:
    .quad 0x4c4e524b4d534158            # "XASMKRNL"
    .long 13                            # ABI_VERSION, asserted in boot.rs
    .long __header_end - __header_start
    .quad kernel_entry
    .quad boot_stack_top
    .quad trap_stack_top                # RSP0
    .quad ist1_top
    .quad ist2_top
    .quad ist3_top
    .quad lstar_ring0
    .quad lstar_ring0_nested
    .quad lstar_ring3
    .quad ring0_syscall
    .quad __text_end
    .quad __rodata_end
    .quad __data_end

    .macro gate addr, ist=3, ring=0, dpl=0, stride=0
    .quad \addr
    .byte \ist, \ring, \dpl, \stride, 0, 0, 0, 0
    .endm

    # Ring-0 mode: every entry runs in ring 0. Vector 4 is the system-call
    # gate where SYSCALL stays in ring 3. The VMM enters CLAC_BYTES earlier
    # where SMAP is on (boot.rs says so).
    # Interrupts use the trap stack, or go on below what they interrupt there: on
    # a stack of their own a second one would be written over the first
    # (docs/platforms.md).
    .macro gates_ring0 kind
    .irp n, 0,1,2
    gate vector\kind\()_\n
    .endr
    gate vector\kind\()_3, 3, 0, 3
    gate vector_4_ring0\kind, 0, 0, 3
    .irp n, 5,6,7,8,9,10,11,12,13
    gate vector\kind\()_\n
    .endr
    gate vector_14_ring0\kind, 1
    .irp n, 15,16,17,18,19,20,21
    gate vector\kind\()_\n
    .endr
    gate debug_trap                     # 22: VECTOR_DEBUG
    .rept 0x30 - 23
    .quad 0, 0
    .endr
    gate vector\kind\()_48, 0
    gate vector\kind\()_49, 0
    .rept 0x40 - 0x32
    .quad 0, 0
    .endr
    gate vector\kind\()_64, 0
    gate vector\kind\()_65, 0
    .endm

    # Ring-3 mode: entries run in ring 3 on their IST stack; #PF and int3 pass
    # through a ring-0 stub that does what ring 3 cannot.
    .macro gates_ring3 kind, stride
    .irp n, 0,1,2
    gate vector\kind\()_\n, 3, 3
    .endr
    gate ring0_privileged\kind, 3, 0, 3, \stride
    gate vector\kind\()_4, 3, 3, 3
    .irp n, 5,6,7,8,9,10,11,12,13
    gate vector\kind\()_\n, 3, 3
    .endr
    gate ring0_page_fault\kind, 1, 0, 0, \stride
    .irp n, 15,16,17,18,19,20,21
    gate vector\kind\()_\n, 3, 3
    .endr
    gate debug_trap, 3, 3
    .rept 0x40 - 23
    .quad 0, 0
    .endr
    gate vector_64_ring3\kind, 2, 3
    .endm

    gates_ring0
    gates_ring3 , 0
    gate vector_65_ring3, 2, 3
    .quad __user_text
    .quad __ring0_text

    # Of several cores. A core takes no interrupt of the VMM and one of another
    # core on the same stack: they would nest. Those of other cores, of which there
    # are many, pass through ring 0 (docs/platforms.md for both).
    .quad core_entry
    .quad core_blocks + IST4_TOP
    .quad CORE_STRIDE
    .quad lstar_ring0_shared
    .quad lstar_ring3_shared
    .quad ring0_syscall_shared
    .quad STUB_BYTES
    gates_ring0 _shared
    gates_ring3 _shared, STUB_BYTES
    gate ring0_ipi, 0
__header_end:

# ----------------------------------------------------------------- start ----
    .section .text, "ax"
    .globl kernel_entry
kernel_entry:                           # RDI = BootInfo, RSP = boot stack
    xor %ebp, %ebp
    call kernel_main
1:  jmp 1b                              # kernel_main does not return
core_entry:                             # RDI = 0, RSP = the core's boot stack
    xor %ebp, %ebp
    call core_main
1:  jmp 1b                              # nor does core_main

# core_begin_anew(): the same again, from whatever stack it runs on.
    .globl core_begin_anew
core_begin_anew:
    mov %rsp, %rax
    and $-CORE_STRIDE, %rax
    lea BOOT_TOP(%rax), %rsp
    jmp core_entry

# ---------------------------------------------------------------- frames ----
    # What Rust code may overwrite, then what it keeps: the fault path that
    # succeeds saves only the first group.
    .macro push_volatile
    push %rax
    push %rcx
    push %rdx
    push %rsi
    push %rdi
    push %r8
    push %r9
    push %r10
    push %r11
    .endm

    .macro push_preserved
    push %rbx
    push %rbp
    push %r12
    push %r13
    push %r14
    push %r15
    .endm

    .macro pop_preserved
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbp
    pop %rbx
    .endm

    .macro pop_volatile
    pop %r11
    pop %r10
    pop %r9
    pop %r8
    pop %rdi
    pop %rsi
    pop %rdx
    pop %rcx
    pop %rax
    .endm

    .macro push_registers
    push_volatile
    push_preserved
    .endm

    .macro pop_registers
    pop_preserved
    pop_volatile
    .endm

# Entries of several cores have names that end in _shared, and so have the
# functions they call: those take the kernel's lock first. One core pays nothing
# for it.
    .macro trap_path kind
trap_common\kind:
    push_registers
    # A switch to an interrupt stack may leave SS null, also from ring 3 to
    # ring 3, and IRETQ takes no null SS back to ring 3.
    mov %cs, %eax
    test $3, %al
    jz 1f
    mov $USER_SS, %eax
    mov %eax, %ss
1:  mov %rsp, %rdi
    cld
    call trap_entry\kind
trap_return\kind:
    pop_registers
    add $24, %rsp
    iretq
    .endm
    trap_path
    trap_path _shared

# What a gate of ring-0 mode leads to where SMAP is on: gates do not clear AC,
# and a program may have set it. Three bytes, right before the entry itself.
    .macro smap_prologue name
arch_smap_\name:
    clac
    .endm

# Exceptions without a fast path. 8, 10..14, 17, 21 push an error code.
    .macro exceptions kind
    .irp n, 0,1,2,3,4,5,6,7,9,15,16,18,19,20,48,49,64,65
    smap_prologue vector\kind\()_\n
vector\kind\()_\n:
    push $0
    push $0
    push $\n
    jmp trap_common\kind
    .endr
    .irp n, 8,10,11,12,13,17,21
    smap_prologue vector\kind\()_\n
vector\kind\()_\n:
    push $0
    push $\n
    jmp trap_common\kind
    .endr
    .endm
    exceptions
    exceptions _shared

# A debugger on the host has #DB lead here (vmm/src/machine/debugger.rs). The store
# needs no register, so what was interrupted is in the registers and in the frame
# when the VMM gets it; it goes on there, not here.
    .set DEBUG_DOORBELL, 0xffff9000d00000f0     # asserted in trap.rs
    smap_prologue debug_trap
debug_trap:
    movabsl %eax, DEBUG_DOORBELL
    ud2

# Page fault, ring-0 mode: error code is on the stack.
    .macro page_fault_path kind
    smap_prologue vector_14_ring0\kind
vector_14_ring0\kind:
    push %rax
    mov %cr2, %rax
page_fault_common\kind:                # RAX = CR2, the program's RAX on top
    xchg %rax, (%rsp)                   # cr2 in the frame, rax as it was
    push $14
    push_volatile
    cld
    mov 80(%rsp), %rdi                  # cr2
    mov 88(%rsp), %rsi                  # error
    call fault_fast\kind
    test %al, %al
    jz 1f
    pop_volatile
    add $24, %rsp
    iretq
1:  push_preserved
    mov %rsp, %rdi
    call fault_entry\kind
    jmp trap_return\kind
    .endm
    page_fault_path
    page_fault_path _shared

# Page fault, ring-3 mode: from ring0_page_fault with RAX = CR2 and the
# program's RAX on the stack above the error code.
    .set page_fault_ring3, page_fault_common
    .set page_fault_ring3_shared, page_fault_common_shared

# The interrupts in ring-3 mode, where nothing can hold them off: the next one
# would start at the top of IST2 again. So the frame moves to the stack it
# interrupted (that of a program: to the trap stack, which is empty then), and
# only then is the interrupt counted and the next one let in. One that
# interrupted the kernel is only acknowledged: the kernel looks at its commands
# before it returns to the program.
    .set APIC_EOI, 0xffff9000fee000b0
    .set INTERRUPTS_TAKEN, 0xffff90000001400c   # asserted in trap.rs
    .macro interrupt_ring3 vector, counter
vector_\vector\()_ring3:
    push %rax
    push %rbx
    mov 16(%rsp), %rbx                  # interrupted RIP
    mov %rsp, %rax
    bt $63, %rbx
    jc 2f
    lea trap_stack_top(%rip), %rsp
    call move_frame
    push $0
    push $0
    push $\vector
    jmp trap_common
2:  mov 40(%rsp), %rsp                  # the kernel's stack
    cmp $lstar_ring3, %rbx
    jb 3f
    cmp $lstar_ring3_on_stack, %rbx
    jae 3f
    lea trap_stack_top(%rip), %rsp      # RSP was still the program's
3:  call move_frame
    push %rax
    movabs $APIC_EOI, %rax
    movl $0, (%rax)
    movabs $\counter, %rax
    lock incl (%rax)
    pop %rax
    iretq
    .endm
    interrupt_ring3 64, INTERRUPTS_TAKEN
    interrupt_ring3 65, cpu_ipis

# The same with several cores. One that interrupted the kernel is told to it at
# once: another core may wait for this one to forget translations.
    .macro interrupt_ring3_shared vector, mover
vector_\vector\()_ring3_shared:
    push %rax
    push %rbx
    mov 16(%rsp), %rbx                  # interrupted RIP
    mov %rsp, %rax
    bt $63, %rbx
    jc 2f
1:  mov %rsp, %rbx
    and $-CORE_STRIDE, %rbx
    lea TRAP_TOP(%rbx), %rsp
    call \mover
    push $0
    push $0
    push $\vector
    jmp trap_common_shared
2:  cmp $lstar_ring3_shared, %rbx
    jb 3f
    cmp $lstar_ring3_shared_on_stack, %rbx
    jae 3f
    mov %rsp, %rbx                      # RSP was still the program's
    and $-CORE_STRIDE, %rbx
    lea TRAP_TOP(%rbx), %rsp
    jmp 4f
3:  mov 40(%rsp), %rsp                  # the kernel's stack
4:  call \mover
    jmp interrupted_kernel_\vector
    .endm
    interrupt_ring3_shared 64, move_frame
    interrupt_ring3_shared 65, move_ipi_frame

# Copies the interrupt frame above RAX (saved RBX, RAX, then RIP … SS) to the
# stack RSP is on, and restores RAX and RBX. Its own return address is taken
# off first. That of vector 65 stands behind its entry: see ring0_ipi.
    .macro frame_mover
    pop %rbx                            # return address
    push $USER_SS                       # may be null: see trap_common
    push 40(%rax)                       # rsp
    push 32(%rax)                       # rflags
    push 24(%rax)                       # cs
    push 16(%rax)                       # rip
    push %rbx
    mov (%rax), %rbx
    mov 8(%rax), %rax
    ret
    .endm
move_ipi_frame:
    frame_mover
ipi_frame_moved:
move_frame:
    frame_mover

    .macro interrupted_kernel vector
interrupted_kernel_\vector:
    push_volatile
    mov $USER_SS, %eax                  # may be null: see trap_common
    mov %eax, %ss
    cld
    mov $\vector, %edi
    call interrupt_in_kernel
    pop_volatile
    iretq
    .endm
    interrupted_kernel 64
    interrupted_kernel 65

# int3 of a program in ring-3 mode, passed on by ring0_privileged.
    .macro breakpoint_path kind
breakpoint_ring3\kind:
    push $0
    push $0
    push $3
    jmp trap_common\kind
    .endm
    breakpoint_path
    breakpoint_path _shared

# ---------------------------------------------------------- system calls ----
    .macro syscall_tail kind
    push $0                             # error
    push $0                             # cr2
    push $VECTOR_SYSCALL
    push_registers
    mov %rsp, %rdi
    call syscall_entry\kind
    jmp trap_return\kind
    .endm

    .macro syscall_head user_rsp:vararg
    push $USER_SS
    push \user_rsp
    push %r11
    push $USER_CS
    push %rcx
    .endm

# The way back is SYSRET where it does the same as IRET: return address and flags
# are still those of RCX and R11, the address is a program's (a non-canonical one
# would fault in ring 0 on the program's stack, Intel SDM vol. 2, SYSRET), and
# neither TF nor RF is set.
    .macro syscall_tail_ring0 kind
    push $0                             # error
    push $0                             # cr2
    push $VECTOR_SYSCALL
    push_registers
    mov %rsp, %rdi
    call syscall_entry\kind
    pop_registers
    cmp %rcx, 24(%rsp)                  # rip
    jne 1f
    testl $0xffff8000, 28(%rsp)         # its bits 47 to 63
    jnz 1f
    cmp %r11, 40(%rsp)                  # rflags
    jne 1f
    test $0x10100, %r11d                # RF, TF
    jnz 1f
    cmpq $USER_CS, 32(%rsp)
    jne 1f
    mov 48(%rsp), %rsp
    sysretq
1:  add $24, %rsp
    iretq
    .endm

# SYSCALL, ring-3 mode: still in ring 3, on the program's stack.
lstar_ring3:
    mov %rsp, cpu_user_rsp(%rip)
    lea trap_stack_top(%rip), %rsp
lstar_ring3_on_stack:
    syscall_head cpu_user_rsp(%rip)
    syscall_tail

# SYSCALL on hardware, ring-0 mode.
lstar_ring0:
    mov %rsp, cpu_user_rsp(%rip)
    lea trap_stack_top(%rip), %rsp
    syscall_head cpu_user_rsp(%rip)
    syscall_tail_ring0

# The same with several cores: each has its own first instructions.
    .set STUB_BYTES, 32
    .macro core_stub core, target
    .balign STUB_BYTES
    mov %rsp, (core_blocks + \core * CORE_STRIDE + USER_RSP)(%rip)
    lea (core_blocks + \core * CORE_STRIDE + TRAP_TOP)(%rip), %rsp
    jmp \target
    .endm
    .macro core_stubs target
    .set core, 0
    .rept MAX_CORES
    core_stub core, \target
    .set core, core + 1
    .endr
    .endm

    .balign STUB_BYTES
lstar_ring3_shared:
    core_stubs lstar_ring3_shared_on_stack
lstar_ring3_shared_on_stack:            # RSP = TRAP_TOP; one word is pushed before
    syscall_head USER_RSP - TRAP_TOP + 8(%rsp)
    syscall_tail _shared

    .balign STUB_BYTES
lstar_ring0_shared:
    core_stubs lstar_ring0_shared_on_stack
lstar_ring0_shared_on_stack:
    syscall_head USER_RSP - TRAP_TOP + 8(%rsp)
    syscall_tail_ring0 _shared

# Vector 4, ring-0 mode: the trampoline's `int 4`, or a program's own #OF.
    .macro overflow_path kind
    smap_prologue vector_4_ring0\kind
vector_4_ring0\kind:
    cmpq $trampoline_return, (%rsp)
    jne 1f
    mov %rcx, (%rsp)
    # A program may jump to the trampoline with flags of its choice in R11:
    # only the arithmetic flags, TF, DF, AC and ID are its to set.
    and $0x240dd5, %r11d
    or $0x202, %r11d
    mov %r11, 16(%rsp)
    cld
    syscall_tail \kind
1:  jmp vector\kind\()_4
    .endm
    overflow_path
    overflow_path _shared

# ------------------------------------------------------- user and kernel ----
# enter_user(frame: RDI) -> exit word: runs a program until leave_user.
    .globl enter_user
enter_user:
    push %rbx
    push %rbp
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, %rax
    and $-CORE_STRIDE, %rax
    mov %rsp, MAIN_RSP(%rax)
    # From a copy on this stack: an interrupt in ring-3 mode pushes right below
    # RSP, and what lies below the frame itself belongs to somebody else.
    sub $FRAME_BYTES, %rsp
    mov %rdi, %rsi
    mov %rsp, %rdi
    mov $FRAME_BYTES / 8, %ecx
    rep movsq
    pop_registers
    add $24, %rsp
    iretq

# run_below() -> exit word: process_go_on with leave_user in force.
    .globl run_below
run_below:
    push %rbx
    push %rbp
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, %rax
    and $-CORE_STRIDE, %rax
    mov %rsp, MAIN_RSP(%rax)
    sub $8, %rsp                        # as a call wants it: a multiple of 16
    call process_go_on
    add $8, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbp
    pop %rbx
    ret

# leave_user(exit word: RDI): drops whatever stack it runs on and returns from
# enter_user. Restores the interrupt flag that the main loop had by popfq.
    .globl leave_user
leave_user:
    mov %rdi, %rax
    mov %rsp, %rcx
    and $-CORE_STRIDE, %rcx
    mov MAIN_RSP(%rcx), %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbp
    pop %rbx
    ret

# core_base() -> the block of this core.
    .globl core_base
core_base:
    mov %rsp, %rax
    and $-CORE_STRIDE, %rax
    ret

# reload_cr3_ring3(root: RDI): CR3 reload for ring-3 mode, through int3.
    .globl reload_cr3_ring3
reload_cr3_ring3:
    mov %rdi, %rax
    int3
privileged_return:
    ret

# probe_store(address: RDI) -> 1 when the store faulted (probes.rs skips it).
    .globl probe_store
    .globl probe_store_instruction
    .globl probe_access_after
probe_store:
    xor %eax, %eax
probe_store_instruction:
    movq $0, (%rdi)
    ret

# probe_load(address: RDI) -> 1 when the load faulted.
    .globl probe_load
    .globl probe_load_instruction
probe_load:
    xor %eax, %eax
probe_load_instruction:
    movq (%rdi), %rcx
    ret
probe_access_after:
    mov $1, %eax
    ret

# probe_execute(address: RDI) -> 1 when the instruction there (a RET) could not
# be fetched: the fault's RIP is the address itself.
    .globl probe_execute
    .globl probe_execute_after
probe_execute:
    push %rdi
    xor %eax, %eax
    call *%rdi
    pop %rdi
    ret
probe_execute_after:                    # the return address is still pushed
    mov $1, %eax
    pop %rdi
    pop %rdi
    ret

# interrupts_on() and interrupts_off(), ring-0 mode only.
    .globl interrupts_on
interrupts_on:
    sti
    nop
    ret
    .globl interrupts_off
interrupts_off:
    cli
    ret

# interrupts_wait(), ring-0 mode only: sleeps until an interrupt was taken. One
# that is pending already ends it: nothing comes between STI and HLT.
    .globl interrupts_wait
interrupts_wait:
    sti
    hlt
    cli
    ret

# Lets the kernel touch a program's memory, and not any more: only where SMAP is
# on (an interpreted ring 0 has neither instruction).
    .globl arch_smap_open
arch_smap_open:
    stac
    ret
    .globl arch_smap_close
arch_smap_close:
    clac
    ret

# arch_extended_save(area: RDI, components: RSI), arch_extended_load: a thread's
# vector registers. Not executed where ring 0 is interpreted.
    .globl arch_extended_save
arch_extended_save:
    mov %esi, %eax
    mov %rsi, %rdx
    shr $32, %rdx
    xsave64 (%rdi)
    ret
    .globl arch_extended_load
arch_extended_load:
    mov %esi, %eax
    mov %rsi, %rdx
    shr $32, %rdx
    xrstor64 (%rdi)
    ret

# --------------------------------------------- ring-0 stubs of ring-3 mode ----
    .section .ring0_text, "ax"
# #PF: hand CR2 over in RAX and go on in ring 3 on the same IST stack.
ring0_page_fault:
    push %rax
    mov %cr2, %rax
    lea bounce_page_fault(%rip), %rsp
    iretq

# SYSCALL on hardware, ring-3 mode: go on in ring 3 behind lstar_ring3's first
# two instructions. IF is clear (a gate cannot lead from ring 0 to ring 3) until
# the frame sets it. SYSRETQ would need RCX and R11.
ring0_syscall:
    mov %rsp, cpu_user_rsp(%rip)
    lea bounce_syscall(%rip), %rsp
    iretq

# int3: a CR3 reload when it comes from reload_cr3_ring3, else the program's.
ring0_privileged:
    cmpq $privileged_return, (%rsp)
    jne 1f
    mov %rax, %cr3
    iretq
1:  lea bounce_breakpoint(%rip), %rsp
    iretq

# Interrupts of other cores, on the stack of TSS.RSP0, where a second one is written
# over the frame of the first. So ring 3 gets a copy below it; and one that comes
# before that has been moved on is the same one once more (QEMU delivers some twice,
# docs/platforms.md), which is dropped, as is one that comes in here: the interrupt
# controller holds a real one until the end of the first.
ring0_ipi:
    testb $3, 8(%rsp)
    jz 2f
    cmpq $vector_65_ring3_shared, (%rsp)
    jb 1f
    cmpq $ipi_frame_moved, (%rsp)
    jb 2f
1:  .rept 5
    push 32(%rsp)                       # ss, rsp, rflags, cs, rip
    .endr
    push $USER_SS
    push %rsp
    addq $8, (%rsp)                     # of the copy
    push $0x202
    push $USER_CS
    push $vector_65_ring3_shared
2:  iretq

# The same for each of several cores, whose stacks the frames behind name.
    .macro ring0_page_fault_stub core
    .balign STUB_BYTES
    push %rax
    mov %cr2, %rax
    lea (bounces + \core * BOUNCE_STRIDE)(%rip), %rsp
    iretq
    .endm
    .macro ring0_syscall_stub core
    .balign STUB_BYTES
    mov %rsp, (core_blocks + \core * CORE_STRIDE + USER_RSP)(%rip)
    lea (bounces + \core * BOUNCE_STRIDE + 40)(%rip), %rsp
    iretq
    .endm
    .macro ring0_privileged_stub core
    .balign STUB_BYTES
    cmpq $privileged_return, (%rsp)
    jne 1f
    mov %rax, %cr3
    iretq
1:  lea (bounces + \core * BOUNCE_STRIDE + 80)(%rip), %rsp
    iretq
    .endm
    .macro ring0_stubs name
    .set core, 0
    .rept MAX_CORES
    \name\()_stub core
    .set core, core + 1
    .endr
    .endm
    .balign STUB_BYTES
ring0_page_fault_shared:
    ring0_stubs ring0_page_fault
    .balign STUB_BYTES
ring0_syscall_shared:
    ring0_stubs ring0_syscall
    .balign STUB_BYTES
ring0_privileged_shared:
    ring0_stubs ring0_privileged

# ---------------------- what ring 3 must reach in ring-0 mode, nested host ----
    .section .user_text, "ax"
lstar_ring0_nested:
    int $4
trampoline_return:
    ud2

# ------------------------------------------------------------------ data ----
    .section .rodata.bounce, "a"
    .balign 8
bounce_page_fault:
    .quad page_fault_ring3, USER_CS, 0x202, ist1_top - 56, USER_SS
bounce_syscall:
    .quad lstar_ring3_on_stack, USER_CS, 0x202, trap_stack_top, USER_SS
bounce_breakpoint:
    .quad breakpoint_ring3, USER_CS, 0x202, ist3_top - 40, USER_SS
    .set BOUNCE_STRIDE, 120
    .macro bounce_frames core
    .quad page_fault_ring3_shared, USER_CS, 0x202, core_blocks + \core * CORE_STRIDE + IST1_TOP - 56, USER_SS
    .quad lstar_ring3_shared_on_stack, USER_CS, 0x202, core_blocks + \core * CORE_STRIDE + TRAP_TOP, USER_SS
    .quad breakpoint_ring3_shared, USER_CS, 0x202, core_blocks + \core * CORE_STRIDE + IST3_TOP - 40, USER_SS
    .endm
bounces:
    .set core, 0
    .rept MAX_CORES
    bounce_frames core
    .set core, core + 1
    .endr

    .section .bss, "aw", @nobits
    .balign 8
    .globl cpu_ipis
cpu_ipis:
    .skip 8

# The last of the image.
    .section .core_blocks, "aw", @nobits
    .balign CORE_STRIDE
    .globl core_blocks
core_blocks:
    .skip CORE_STRIDE
    .set boot_stack_top, core_blocks + BOOT_TOP
    .set trap_stack_top, core_blocks + TRAP_TOP
    .set ist1_top, core_blocks + IST1_TOP
    .set ist2_top, core_blocks + IST2_TOP
    .set ist3_top, core_blocks + IST3_TOP
    .set cpu_user_rsp, core_blocks + USER_RSP
