# Killed brokers and VMMs: who is left goes on, and everything comes back.
create t --cores 1 --mem 64M --backing huge --export /data=/data
simulate t snap/flux longer
begin "the broker is killed, another one takes over"
await seen t 2
broker() {
    ./enclavectl broker status | sed -n 's/^broker: pid \([0-9]*\)[ ,].*/\1/p'
}
killed=$(broker)
kill -KILL "$killed"
others=$([ "$(broker)" != "$killed" ] && echo other)
equal "the broker is killed, another one takes over" other "$others"
begin "broker and keeper are killed"
await seen t 2
# The broker's parent is its keeper, which must not start another one.
both=$(pidof xemem-broker)
# shellcheck disable=SC2086
kill -STOP $both
# shellcheck disable=SC2086
kill -KILL $both
equal "broker and keeper are killed" 0 $?
begin "the simulation goes on without it"
ended $sim
code=$?
equal "the simulation goes on without it" "exit code 0, idle" "exit code $code, $(state t)"
begin "its reader says why it ends"
ended $reader
code=$?
cat /tmp/read.t
equal "its reader says why it ends" "exit code 1, 1 reason" \
    "exit code $code, $(grep -c -m 1 broker /tmp/read.t) reason"

simulate t snap/flux long
begin "a new broker serves the old enclave"
await seen t 2
equal "a new broker serves the old enclave" 0 $?
begin "enclave-vmm is killed"
kill -KILL "$(pidof enclave-vmm)"
ended $sim
code=$?
equal "enclave-vmm is killed" "exit code 125, dead" "exit code $code, $(state t)"
begin "the reader sees the end"
ended $reader
code=$?
cat /tmp/read.t
equal "the reader sees the end" "exit code 0" "exit code $code"
huge_pages_free() {
    awk '/HugePages_Total/ { t = $2 } /HugePages_Free/ { f = $2 } END { exit t != f }' /proc/meminfo
}
step "what is kept of its arena is given up" 0 ./enclavectl snap rm --all
begin "every huge page is free again"
await huge_pages_free
equal "every huge page is free again" 0 $?

create t --cores 1 --mem 64M
begin "destroy ends a running program"
run_until t spinning ./spin
./enclavectl destroy t
equal "destroy ends a running program" 0 $?
begin "its client knows"
ended $run
equal "its client knows" 125 $?
