# Cores come to an idle enclave that has them alone and go again: its partition and
# the interrupts follow, and nothing stays behind.
groups=/sys/fs/cgroup

partition_of() { # enclave
    cat $groups/xasm-"$1"-*/cpuset.cpus.partition $groups/xasm-"$1"-*/cpuset.cpus | tr '\n' ' '
}

cores_of() { # enclave
    ./enclavectl inspect "$1" --json | tr -d ' \n' | sed 's/.*"cores":\[\([0-9,]*\)\],"created.*/\1/'
}

create m --cores 1 --max-cores 3 --mem 64M --isolation require
equal "it is alone on core 3" "isolated 3 " "$(partition_of m)"
for round in 1 2 3; do
    step "cores are added, round $round" 0 ./enclavectl update m --add-cores 1-2
    equal "it has them, round $round" "1,2,3" "$(cores_of m)"
    equal "its partition has them, round $round" "isolated 1-3 " "$(partition_of m)"
    step "the last one stays with the host, round $round" 6 ./enclavectl update m --add-cores 0-0
    step "cores are removed, round $round" 0 ./enclavectl update m --remove-cores 2
    equal "it has the first, round $round" 3 "$(cores_of m)"
    equal "its partition has the first, round $round" "isolated 3 " "$(partition_of m)"
    equal "others run there again, round $round" 0-2 \
        "$(sed -n 's/^Cpus_allowed_list:[[:space:]]*//p' /proc/self/status)"
done
step "a program runs afterwards" 0 ./enclavectl run m -- ./tls
step "another takes a core that has gone" 0 \
    ./enclavectl create u --cores 2-2 --mem 64M --isolation require
step "it is taken" 4 ./enclavectl update m --add-cores 2-2
step "u ends" 0 ./enclavectl destroy u
step "m ends" 0 ./enclavectl destroy m
