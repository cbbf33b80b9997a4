#!/bin/sh
# First process of the emulated machine: mounts, loads KVM, runs every step in
# both privilege modes, and tells the verdict by QEMU's exit code. A line that
# starts with "STEP" is one result; everything else is for whoever looks why.
export PATH=/bin ENCLAVE_RUNDIR=/run/enclaves
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
for module in irqbypass kvm kvm-amd; do
    insmod /modules/$module.ko || echo "insmod $module failed"
done
cd /programs || exit 1
failed=0

verdict_of() { # name, expected text, what came
    if [ "$2" = "$3" ]; then
        echo "STEP ok   $mode $1"
    else
        echo "STEP FAIL $mode $1: $3, expected $2"
        failed=$((failed + 1))
    fi
}

step() { # name, expected exit code, command...
    name=$1 expected=$2
    shift 2
    timeout -s KILL 60 "$@" > /tmp/step 2>&1 < /dev/null
    code=$?
    cat /tmp/step
    verdict_of "$name" "exit code $expected" "exit code $code"
}

fact() { # key, expected value: of inspect
    found=$(./enclavectl inspect t --json | sed -n "s/.*\"$1\": \"\([a-z0-9]*\)\".*/\1/p")
    verdict_of "$1" "$2" "$found"
}

killed() {
    ./enclavectl run t -- ./spin > /tmp/spin 2>&1 < /dev/null &
    run=$!
    tries=0
    while ! [ -s /tmp/spin ] && [ $tries -lt 200 ]; do
        usleep 50000
        tries=$((tries + 1))
    done
    kill -TERM $run
    (sleep 30; kill -KILL $run) 2> /dev/null &
    guard=$!
    wait $run
    code=$?
    kill $guard
    cat /tmp/spin
    verdict_of "a looping program is killed" "exit code 143" "exit code $code"
}

snapshots() {
    timeout -s KILL 40 ./spectrum snap/flux --json --timeout 20 > /tmp/spectrum 2>&1 &
    reader=$!
    step "snap-mini publishes" 0 ./enclavectl run t -- ./snap-mini --input /data/tiny.inp
    wait $reader
    code=$?
    cat /tmp/spectrum
    verdict_of "the reader verifies five snapshots" "5, exit code 0" \
        "$(sed -n 's/.*"verified":\([0-9]*\).*/\1/p' /tmp/spectrum), exit code $code"
}

for mode in ring0 ring3; do
    # ring0 is what `auto` has to choose here.
    if [ $mode = ring0 ]; then ring=auto; else ring=3; fi
    step "create" 0 ./enclavectl create t --cores 1 --mem 64M --no-prefault \
        --export /programs=/data --ring $ring
    fact kernel_mode $mode
    fact platform hardware
    step "a program runs" 0 ./enclavectl run t -- ./tls
    for fault in null:139 code:139 jump:139 wild:139 divide:136 ud2:132; do
        step "fault ${fault%:*} ends its program" ${fault#*:} \
            ./enclavectl run t -- ./segv ${fault%:*}
    done
    snapshots
    killed
    step "the next program runs" 0 ./enclavectl run t -- ./tls
    step "faults, publishes and system calls by the thousand" 0 \
        ./enclavectl run t -- ./xasm-counts
    ./enclavectl logs t
    step "destroy" 0 ./enclavectl destroy t
    step "no enclave-vmm is left" 1 pidof enclave-vmm
done

dmesg | tail -20
if [ $failed = 0 ]; then verdict 21; fi
verdict 1
poweroff -f
