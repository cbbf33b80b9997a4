# Programs that attack: each dies alone. In ring 0 the kernel is out of reach;
# in ring 3 it is not, and only the wall around the enclave is (threat model).
create t --cores 1 --mem 64M
attack() { # codes, program and arguments...
    codes=$1
    shift
    step "attack $*" "$codes" ./enclavectl run t -- "./$@"
}

for how in null kernel-text kernel-hole noncanonical arena text guard read-kernel-hole \
    jump-null jump-stack jump-kernel-hole jump-direct-map jump-noncanonical \
    stack-null stack-kernel recurse; do
    attack 139 memory $how
done
for how in hlt cli sti cr3 cr0 wrmsr rdmsr lgdt lidt ltr invlpg in out iret \
    swapgs clts invd wbinvd; do
    attack 139 instructions $how
done
for how in xsetbv sysret monitor syscall32 int80 int4; do
    attack "132|139" instructions $how
done
for how in int3 trap-flag; do
    attack 133 instructions $how
done
# QEMU's processor does not know this one.
attack "132|133" instructions icebp
for how in ud2 lock; do
    attack 132 instructions $how
done
# 3: KVM takes it for a call that is not allowed, and goes on.
for how in vmcall vmmcall; do
    attack "3|132|139" instructions $how
done
attack 3 instructions syscall-nowhere
if grep -q umip /proc/cpuinfo; then
    for how in sgdt sidt sldt str smsw; do
        attack 139 instructions $how
    done
fi

if [ $mode = ring0 ]; then
    # Image, and through the direct map: BootInfo, GDT, IDT, queue, console,
    # bounce area, image, last megabyte, doorbells, leases, local APIC; page
    # tables wherever they are.
    for address in 0xffffffff80200000 0xffffffff80201000 \
        0xffff900000010000 0xffff900000011000 0xffff900000012000 0xffff900000014000 \
        0xffff900000020000 0xffff900000100000 0xffff900000200000 0xffff900003f00000 \
        0xffff9000d0000000 0xffff9000d0002000 0xffff9000fee00000 0xfee00000; do
        for how in read write jump; do
            attack 139 memory $how $address
        done
    done
    for how in queue-noise queue-exit console bounce tables idt gdt lease apic everything; do
        attack 139 scribble $how
    done
    for how in sse avx x87 string; do
        attack 139 vector $how
    done
fi
equal "the enclave is idle" idle "$(state t)"
step "the next program runs" 0 ./enclavectl run t -- ./tls
./enclavectl logs t | tail -5
step "destroy t" 0 ./enclavectl destroy t
