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

# ---------------------------------------------------------------- header ----
    .section .boot_header, "ax"
__header_start:
    .quad 0x4c4e524b4d534158            # "XASMKRNL"
    .long 8                             # ABI_VERSION, asserted in boot.rs
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

    .macro gate addr, ist=3, ring=0, dpl=0
    .quad \addr
    .byte \ist, \ring, \dpl, 0, 0, 0, 0, 0
    .endm

    # Ring-0 mode: every entry runs in ring 0. Vector 4 is the system-call
    # gate where SYSCALL stays in ring 3. The VMM enters CLAC_BYTES earlier
    # where SMAP is on (boot.rs says so).
    .irp n, 0,1,2
    gate vector_\n
    .endr
    gate vector_3, 3, 0, 3
    gate vector_4_ring0, 0, 0, 3
    .irp n, 5,6,7,8,9,10,11,12,13
    gate vector_\n
    .endr
    gate vector_14_ring0, 1
    .irp n, 15,16,17,18,19,20,21
    gate vector_\n
    .endr
    gate debug_trap                     # 22: VECTOR_DEBUG
    .rept 0x30 - 23
    .quad 0, 0
    .endr
    gate vector_48, 2
    gate vector_49, 2
    .rept 0x40 - 0x32
    .quad 0, 0
    .endr
    gate vector_64, 2
    gate vector_65, 2

    # Ring-3 mode: entries run in ring 3 on their IST stack; #PF and int3 pass
    # through a ring-0 stub that does what ring 3 cannot.
    .irp n, 0,1,2
    gate vector_\n, 3, 3
    .endr
    gate ring0_privileged, 3, 0, 3
    gate vector_4, 3, 3, 3
    .irp n, 5,6,7,8,9,10,11,12,13
    gate vector_\n, 3, 3
    .endr
    gate ring0_page_fault, 1, 0
    .irp n, 15,16,17,18,19,20,21
    gate vector_\n, 3, 3
    .endr
    gate debug_trap, 3, 3
    .rept 0x40 - 23
    .quad 0, 0
    .endr
    gate vector_64_ring3, 2, 3
    gate vector_65_ring3, 2, 3

    .quad __user_text
    .quad __ring0_text
__header_end:

# ----------------------------------------------------------------- start ----
    .section .text, "ax"
    .globl kernel_entry
kernel_entry:                           # RDI = BootInfo, RSP = boot stack
    xor %ebp, %ebp
    call kernel_main
1:  jmp 1b                              # kernel_main does not return

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

trap_common:
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
    call trap_entry
trap_return:
    pop_registers
    add $24, %rsp
    iretq

# What a gate of ring-0 mode leads to where SMAP is on: gates do not clear AC,
# and a program may have set it. Three bytes, right before the entry itself.
    .macro smap_prologue name
arch_smap_\name:
    clac
    .endm

# Exceptions without a fast path. 8, 10..14, 17, 21 push an error code.
    .irp n, 0,1,2,3,4,5,6,7,9,15,16,18,19,20,48,49,64,65
    smap_prologue vector_\n
vector_\n:
    push $0
    push $0
    push $\n
    jmp trap_common
    .endr
    .irp n, 8,10,11,12,13,17,21
    smap_prologue vector_\n
vector_\n:
    push $0
    push $\n
    jmp trap_common
    .endr

# A debugger on the host has #DB lead here (vmm/src/machine/debugger.rs). The store
# needs no register, so what was interrupted is in the registers and in the frame
# when the VMM gets it; it goes on there, not here.
    .set DEBUG_DOORBELL, 0xffff9000d00000f0     # asserted in trap.rs
    smap_prologue debug_trap
debug_trap:
    movabsl %eax, DEBUG_DOORBELL
    ud2

# Page fault, ring-0 mode: error code is on the stack.
    smap_prologue vector_14_ring0
vector_14_ring0:
    push %rax
    mov %cr2, %rax
page_fault_common:                      # RAX = CR2, the program's RAX on top
    xchg %rax, (%rsp)                   # cr2 in the frame, rax as it was
    push $14
    push_volatile
    cld
    mov 80(%rsp), %rdi                  # cr2
    mov 88(%rsp), %rsi                  # error
    call fault_fast
    test %al, %al
    jz 1f
    pop_volatile
    add $24, %rsp
    iretq
1:  push_preserved
    mov %rsp, %rdi
    call fault_entry
    jmp trap_return

# Page fault, ring-3 mode: from ring0_page_fault with RAX = CR2 and the
# program's RAX on the stack above the error code.
    .set page_fault_ring3, page_fault_common

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

# Copies the interrupt frame above RAX (saved RBX, RAX, then RIP … SS) to the
# stack RSP is on, and restores RAX and RBX. Its own return address is taken
# off first.
move_frame:
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

# int3 of a program in ring-3 mode, passed on by ring0_privileged.
breakpoint_ring3:
    push $0
    push $0
    push $3
    jmp trap_common

# ---------------------------------------------------------- system calls ----
    .macro syscall_tail
    push $0                             # error
    push $0                             # cr2
    push $VECTOR_SYSCALL
    push_registers
    mov %rsp, %rdi
    call syscall_entry
    jmp trap_return
    .endm

    .macro syscall_head
    push $USER_SS
    push cpu_user_rsp(%rip)
    push %r11
    push $USER_CS
    push %rcx
    .endm

# SYSCALL, ring-3 mode: still in ring 3, on the program's stack.
lstar_ring3:
    mov %rsp, cpu_user_rsp(%rip)
    lea trap_stack_top(%rip), %rsp
lstar_ring3_on_stack:
    syscall_head
    syscall_tail

# SYSCALL on hardware, ring-0 mode. The way back is SYSRET where it does the same
# as IRET: return address and flags are still those of RCX and R11, the address
# is a program's (a non-canonical one would fault in ring 0 on the program's
# stack, Intel SDM vol. 2, SYSRET), and neither TF nor RF is set.
lstar_ring0:
    mov %rsp, cpu_user_rsp(%rip)
    lea trap_stack_top(%rip), %rsp
    syscall_head
    push $0                             # error
    push $0                             # cr2
    push $VECTOR_SYSCALL
    push_registers
    mov %rsp, %rdi
    call syscall_entry
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

# Vector 4, ring-0 mode: the trampoline's `int 4`, or a program's own #OF.
    smap_prologue vector_4_ring0
vector_4_ring0:
    cmpq $trampoline_return, (%rsp)
    jne 1f
    mov %rcx, (%rsp)
    # A program may jump to the trampoline with flags of its choice in R11:
    # only the arithmetic flags, TF, DF, AC and ID are its to set.
    and $0x240dd5, %r11d
    or $0x202, %r11d
    mov %r11, 16(%rsp)
    cld
    syscall_tail
1:  jmp vector_4

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
    mov %rsp, cpu_main_rsp(%rip)
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

# leave_user(exit word: RDI): drops whatever stack it runs on and returns from
# enter_user. Restores the interrupt flag that the main loop had by popfq.
    .globl leave_user
leave_user:
    mov %rdi, %rax
    mov cpu_main_rsp(%rip), %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbp
    pop %rbx
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

    .section .bss, "aw", @nobits
    .balign 4096
    .skip 32768
boot_stack_top:
    .skip 32768
trap_stack_top:
    .skip 16384
ist1_top:
    .skip 16384
ist2_top:
    .skip 16384
ist3_top:
    .balign 8
    .globl cpu_user_rsp
cpu_user_rsp:
    .skip 8
    .globl cpu_main_rsp
cpu_main_rsp:
    .skip 8
    .globl cpu_ipis
cpu_ipis:
    .skip 8
