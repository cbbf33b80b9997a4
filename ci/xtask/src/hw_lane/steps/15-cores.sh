# Several cores: threads at the same time, and no translation outlives its mapping
# on another core, which only hardware semantics can show.
for cores in 2 3; do
    create c --cores $cores --share-cores --mem 96M
    fact c kernel_mode $mode
    step "threads on $cores cores" 0 ./enclavectl run c -- ./threads
    step "the last thread ends its program on $cores cores" 0 \
        ./enclavectl run c -- ./threads leave
    step "nothing is stale on $cores cores" 0 ./enclavectl run c -- ./cores
    equal "nothing is stale on $cores cores, it says" "200 rounds, 0 stale" \
        "$(grep stale /tmp/step)"
    equal "pages hold what was written" "pages that hold what was written: 10800" \
        "$(grep written /tmp/step)"
    equal "threads stay where they are pinned" "several cores: yes, pinned: 0" \
        "$(grep pinned /tmp/step)"
    step "a program ends with all its cores" 7 ./enclavectl run c -- ./cores exit
    step "one that faults on all of them dies once" 139 ./enclavectl run c -- ./cores fault
    begin "a loop on one core does not survive a kill"
    run_until c spinning ./spin
    kill -TERM $run
    ended $run
    code=$?
    equal "a loop on one core does not survive a kill" "exit code 143" "exit code $code"
    step "the next program runs" 0 ./enclavectl run c -- ./tls
    step "destroy c" 0 ./enclavectl destroy c
done
