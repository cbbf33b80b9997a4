# A simulation publishes, a reader on Linux verifies each snapshot.
create t --cores 1 --mem 64M --export /data=/data
timeout -s KILL 40 ./spectrum snap/flux --json --timeout 20 > /tmp/spectrum 2>&1 &
reader=$!
step "snap-mini publishes" 0 ./enclavectl run t -- ./snap-mini --input /data/tiny.inp
begin "the reader verifies five snapshots"
wait $reader
code=$?
cat /tmp/spectrum
equal "the reader verifies five snapshots" "5, exit code 0" \
    "$(sed -n 's/.*"verified":\([0-9]*\).*/\1/p' /tmp/spectrum), exit code $code"
step "faults, publishes and system calls by the thousand" 0 \
    ./enclavectl run t -- ./xasm-counts
./enclavectl logs t
step "destroy t" 0 ./enclavectl destroy t
