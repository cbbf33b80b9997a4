#!/bin/sh
# First process of the emulated machine: mounts, loads KVM, reserves huge pages
# on both nodes, runs every file of /steps in both privilege modes, and tells
# the verdict by the emulator's exit code. Each file runs in a shell of its own
# (part.sh), so that one that hangs can be ended.
#
# Variables from the kernel's command line: LANE_MODES (ring0,ring3), LANE_NPT,
# LANE_HUGE (pages a node),
# LANE_CREATE (options of every create), LANE_PCID (the processor has it),
# LANE_KMSG (the console by way of the kernel's log).
export PATH=/bin ENCLAVE_RUNDIR=/run/enclaves
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
mount -t cgroup2 cgroup /sys/fs/cgroup
mkdir -p /tmp/lane
. /lib.sh
mode=boot

# The kernel polls the serial line; writes by interrupt stick there now and then.
# Also ends the machine, after the last line.
log_console() {
    while IFS= read -r line; do
        printf '<1>%.900s\n' "$line" > /dev/kmsg
        case "$line" in "STEP end"*) poweroff -f ;; esac
    done < /tmp/lane/console &
}
if [ -n "$LANE_KMSG" ]; then
    mkfifo /tmp/lane/console
    # Keeps what is written while no `log_console` runs.
    exec 3<> /tmp/lane/console
    log_console
    exec > /tmp/lane/console 2>&1
fi

end() {
    # Without what `log_console` wrote there.
    [ -s /tmp/lane/failed ] && dmesg -r | grep -v '^<9>' | tail -30
    echo "STEP end -"
    [ -n "$LANE_KMSG" ] && wait
    if [ -s /tmp/lane/failed ]; then verdict 1; else verdict 21; fi
    poweroff -f
}

while read -r module; do
    parameters=
    [ "$module" = kvm-amd ] && parameters=npt=${LANE_NPT:-1}
    step "insmod $module" 0 insmod "/modules/$module.ko" $parameters
done < /modules/order
if ! [ -c /dev/kvm ]; then
    equal "/dev/kvm" "is there" "missing"
    end
fi
for node in 0 1; do
    pool=/sys/devices/system/node/node$node/hugepages/hugepages-2048kB/nr_hugepages
    [ -f $pool ] || continue
    # In a process of its own: a signal (the end of a child, say) would end the
    # reservation early.
    sh -c "echo ${LANE_HUGE:-128} > $pool"
    equal "huge pages of node $node" "${LANE_HUGE:-128}" "$(cat $pool)"
done

for mode in $(echo "${LANE_MODES:-ring0,ring3}" | tr , ' '); do
    for part in /steps/*.sh; do
        timeout -s KILL 240 sh /part.sh $mode "$part" < /dev/null 3>&-
        [ $? = 137 ] && equal "${part##*/} comes to its end" "in time" "killed"
        nothing_left "${part##*/}"
    done
done
end
