# A publish wakes a reader that sleeps. The enclave is held for a while, so that
# the reader has taken everything and waits for more.
create t --cores 1 --mem 64M --export /data=/data
vmm=$(pidof enclave-vmm)
simulate t snap/flux long
begin "the reader has snapshots"
await seen t 3
equal "the reader has snapshots" 0 $?

asleep() {
    # The program, not the `timeout` in front of it.
    follower=$(pidof spectrum | awk '{ print $1 }')
    first=$(snapshots t)
    ticks=$(awk '{ print $14 + $15 }' "/proc/$follower/stat")
    usleep 300000
    [ "$(awk '{ print $3 }' "/proc/$follower/stat")" = S ] &&
        [ "$(awk '{ print $14 + $15 }' "/proc/$follower/stat")" = "$ticks" ] &&
        [ "$(snapshots t)" = "$first" ]
}
begin "the reader sleeps while nothing is published"
kill -STOP "$vmm"
await asleep
equal "the reader sleeps while nothing is published" 0 $?
cat "/proc/$follower/wchan" && echo
begin "a publish wakes it"
kill -CONT "$vmm"
await seen t $((first + 2))
equal "a publish wakes it" 0 $?
begin "the program ends"
ended $sim
equal "the program ends" 0 $?
begin "the reader verifies all"
ended $reader
code=$?
tail -4 /tmp/read.t
equal "the reader verifies all" "$WHOLE" "$(whole t $code)"
step "destroy t" 0 ./enclavectl destroy t
