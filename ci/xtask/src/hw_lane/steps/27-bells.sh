# A publish in one enclave interrupts another: no thread of broker and VMMs but the
# vCPUs' own wakes up for it.
create a --cores 2-2 --mem 64M
create b --cores 3-3 --mem 64M
mkfifo /tmp/to.a /tmp/to.b
./enclavectl run a -- ./xasm-bench < /tmp/to.a > /tmp/from.a 2>&1 &
a=$!
./enclavectl run b -- ./xasm-bench < /tmp/to.b > /tmp/from.b 2>&1 &
b=$!
exec 8> /tmp/to.a 9> /tmp/to.b
rm /tmp/to.a /tmp/to.b

lines() { # file, count
    [ "$(wc -l < "$1")" = "$2" ]
}
sleeps() { # voluntary context switches, of all but vCPUs
    for pid in $(pidof enclave-vmm) $(pidof xemem-broker); do
        for task in /proc/"$pid"/task/*; do
            case $(cat "$task/comm") in
            vcpu*) ;;
            *) echo "$task $(awk '/^voluntary/ { print $2 }' "$task/status")" ;;
            esac
        done
    done
}
bells() { # enclave, what
    ./enclavectl inspect "$1" --json | tr -d ' \n' | grep -o '"bells":{[^}]*}' |
        grep -o "\"$2\":[0-9]*" | cut -d: -f2
}

tell_all() { # what KVM counts of each machine, twice
    mount -t debugfs none /sys/kernel/debug 2> /dev/null
    for when in before after; do
        for enclave in a b; do
            ./enclavectl inspect $enclave --json | tr -d ' \n' | grep -o '"bells":{[^}]*}'
        done
        for what in exits halt_exits irq_injections irq_window_exits mmio_exits io_exits; do
            echo "$when: $what" $(cat /sys/kernel/debug/kvm/*-*/$what)
        done
        usleep 1000000
    done
}

begin "each attaches the other's arena"
echo "make q 8192 4096 4 discard-newest 0" >&8
echo "make r 8192 4096 4 discard-newest 0" >&9
await lines /tmp/from.a 1
await lines /tmp/from.b 1
echo "attach r latest 30000" >&8
echo "attach q latest 30000" >&9
await lines /tmp/from.a 2
await lines /tmp/from.b 2
equal "each attaches the other's arena" "ok 8192 4096 ok 8192 4096" \
    "$(echo $(tail -1 /tmp/from.a) $(tail -1 /tmp/from.b))"
begin "20 publishes each way"
echo "rally r q second 20 60000" >&9
echo "rally q r first 20 60000" >&8
await lines /tmp/from.a 3
await lines /tmp/from.b 3
equal "20 publishes each way" "1 1" "$(bells a rung) $(bells b rung)"
taken=$(bells b taken)
begin "300 publishes each way wake nobody"
usleep 500000
before=$(sleeps)
echo "rally r q second 300 60000" >&9
echo "rally q r first 300 60000" >&8
await lines /tmp/from.a 4
await lines /tmp/from.b 4
after=$(sleeps)
tail -1 /tmp/from.a
tail -1 /tmp/from.b
lines /tmp/from.b 4 || tell_all
equal "300 publishes each way wake nobody" "$before" "$after"
begin "b was woken"
woken=$(($(bells b taken) - taken))
echo "$woken times"
equal "b was woken" 1 "$((woken > 0))"
exec 8>&- 9>&-
wait $a $b
step "destroy a and b" 0 ./enclavectl destroy a b
