# Cores of enclaves are isolated partitions: told by `inspect`, by the kernel's
# own files, and by where a process of the host may run. Everything comes back,
# also after kill -9. Cores can be switched off here.
groups=/sys/fs/cgroup

pid_of() { # enclave
    ./enclavectl inspect "$1" --json | sed -n 's/.*"pid": \([0-9]*\).*/\1/p' | head -1
}

partition_of() { # enclave
    cat $groups/xasm-"$1"-*/cpuset.cpus.partition
}

may_run_on() { # process
    sed -n 's/^Cpus_allowed_list:[[:space:]]*//p' "/proc/$1/status"
}

# Cores of partitions that the kernel calls isolated.
isolated() {
    for group in $groups/xasm-*; do
        [ "$(cat "$group/cpuset.cpus.partition" 2> /dev/null)" = isolated ] &&
            cat "$group/cpuset.cpus.effective"
    done | sort | tr '\n' ' '
}

held() { # enclave
    ./enclavectl inspect "$1" --json | sed -n '/"held"/,/}/s/.*"\(kind\|reason\)": "\(.*\)".*/\2/p' |
        tr '\n' ' '
}

sleep 1000 &
other=$!
for interrupt in /proc/irq/[0-9]*; do cat "$interrupt/smp_affinity_list"; done > /tmp/irqs.before
create t --cores 1 --mem 64M --isolation require
equal "the partition of t" isolated "$(partition_of t)"
equal "inspect says so" "isolated " "$(held t)"
equal "core 3 is isolated" "3 " "$(isolated)"
equal "others stay off core 3" 0-2 "$(may_run_on $other)"
equal "new ones, too" 0-2 "$(may_run_on self)"
kept=$(cat /proc/irq/[0-9]*/effective_affinity_list | grep -c 3)
equal "no interrupt is sent to core 3" 0 "$kept"
step "a program runs on it" 0 ./enclavectl run t -- ./tls
create u --cores 1 --mem 64M --isolation require
equal "core 2 is isolated, too" "2 3 " "$(isolated)"
equal "others have two cores left" 0-1 "$(may_run_on $other)"

kill -KILL "$(pid_of t)"
await ./enclavectl list --quiet
begin "the next command gives core 3 back"
given_back() {
    ./enclavectl list > /dev/null
    [ "$(isolated)" = "2 " ]
}
await given_back
equal "the next command gives core 3 back" "2 , 0-1,3" "$(isolated), $(may_run_on $other)"
step "destroy them" 0 ./enclavectl destroy t u
equal "nothing is isolated" "" "$(isolated)"
equal "no group is left" "" "$(ls $groups | grep xasm-)"
for interrupt in /proc/irq/[0-9]*; do cat "$interrupt/smp_affinity_list"; done > /tmp/irqs.after
equal "interrupts are where they were" "$(cat /tmp/irqs.before)" "$(cat /tmp/irqs.after)"

# What the kernel refuses is told in its words, and only --isolation require minds.
mkdir $groups/theirs
echo 3 > $groups/theirs/cpuset.cpus
echo isolated > $groups/theirs/cpuset.cpus.partition
equal "somebody else isolates core 3" isolated "$(cat $groups/theirs/cpuset.cpus.partition)"
step "core 3 is not to be had alone" 6 ./enclavectl create t --ring $ring --cores 3-3 --mem 64M \
    --isolation require
step "nor at all" 6 ./enclavectl create t --ring $ring --cores 3-3 --mem 64M
rmdir $groups/theirs

# A core that is switched off, before and during. A partition that ends while a core
# is off leaves the processes of the root group without that core for good: Linux
# does not touch them when it comes back. So each is on again before the next end,
# and the end of a group, which rmdir does not wait for, comes before.
all_back() {
    [ "$(cat $groups/cpuset.cpus.effective) $(may_run_on $other)" = "0-3 0-3" ]
}
await all_back
echo 0 > /sys/devices/system/cpu/cpu3/online
step "core 3 is offline" 6 ./enclavectl create t --ring $ring --cores 3-3 --mem 64M
begin "that is told"
grep -q "core 3 is offline" /tmp/step && found=yes || found=$(cat /tmp/step)
equal "that is told" yes "$found"
echo 1 > /sys/devices/system/cpu/cpu3/online
await all_back
create t --cores 3-3 --mem 64M
equal "core 3 is isolated again" "3 " "$(isolated)"
echo 0 > /sys/devices/system/cpu/cpu3/online
begin "a partition without a core is told"
found=$(held t)
case $found in *"invalid"* | *"affinity"*) found=told ;; esac
equal "a partition without a core is told" told "$found"
echo 1 > /sys/devices/system/cpu/cpu3/online
step "it can be destroyed" 0 ./enclavectl destroy t
begin "all cores are back"
await all_back
equal "all cores are back" "0-3 0-3" "$(cat $groups/cpuset.cpus.effective) $(may_run_on $other)"
kill $other
