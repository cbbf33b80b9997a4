# Two enclaves on two cores publish to two readers at the same time.
create a --cores 2-2 --mem 32M --export /data=/data
create b --cores 3-3 --mem 32M --export /data=/data

core_of() { # enclave: where its virtual processor may run
    pid=$(./enclavectl inspect "$1" --json | sed -n 's/.*"pid": \([0-9]*\).*/\1/p' | head -1)
    for task in /proc/$pid/task/*; do
        [ "$(cat $task/comm)" = vcpu0 ] && awk '/Cpus_allowed_list/ { print $2 }' $task/status
    done
}
equal "a is on core 2" 2 "$(core_of a)"
equal "b is on core 3" 3 "$(core_of b)"
step "core 3 is taken" 4 ./enclavectl create c --cores 3-3 --mem 32M

simulate a a/flux longer
sim_a=$sim reader_a=$reader
simulate b b/flux longer --chunk 4K
sim_b=$sim reader_b=$reader
both() {
    seen a 1 && seen b 1 && [ "$(./enclavectl list | grep -c running)" = 2 ]
}
begin "both publish at the same time"
await both
equal "both publish at the same time" 0 $?
for enclave in a b; do
    begin "$enclave ends"
    eval "ended \$sim_$enclave"
    equal "$enclave ends" 0 $?
    begin "all of $enclave is verified"
    eval "ended \$reader_$enclave"
    code=$?
    tail -4 /tmp/read.$enclave
    equal "all of $enclave is verified" "$WHOLE" "$(whole $enclave $code)"
done
step "destroy a and b" 0 ./enclavectl destroy a b
