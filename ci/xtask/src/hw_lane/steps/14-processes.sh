# Several processes in one enclave: each has its own memory, results and end, and
# their tables follow each other on the core.
create p --cores 1 --mem 96M
for seed in 1 2; do
    ./siblings turns 20 $seed | tail -1 > /tmp/alone.$seed
done
begin "two processes compute what they compute alone"
timeout -s KILL $limit ./enclavectl run p -- ./siblings turns 20 1 > /tmp/first 2>&1 < /dev/null &
first=$!
timeout -s KILL $limit ./enclavectl run p -- ./siblings turns 20 2 > /tmp/second 2>&1 < /dev/null
ended $first
equal "the first computes what it computes alone" "$(cat /tmp/alone.1)" "$(tail -1 /tmp/first)"
equal "the second computes what it computes alone" "$(cat /tmp/alone.2)" "$(tail -1 /tmp/second)"

begin "a process that loops is listed beside another"
run_until p spinning ./spin
looping=$run
timeout -s KILL $limit ./enclavectl run p -- ./siblings turns 5 1 > /tmp/second 2>&1 < /dev/null &
second=$!
await sh -c './enclavectl ps p | grep -q "ready.*siblings"'
equal "a process that loops is listed beside another" 1 \
    "$(./enclavectl ps p | grep -c 'running.*spin')"
step "the looping one is killed by its number" 0 \
    ./enclavectl kill "p:$(./enclavectl ps p | awk '/spin/ { print $1 }')"
ended $looping
code=$?
equal "it ends by the signal" "exit code 143" "exit code $code"
ended $second
code=$?
equal "the other one goes on to its end" "exit code 0" "exit code $code"
equal "no process is left" 1 "$(./enclavectl ps p | wc -l)"
step "destroy p" 0 ./enclavectl destroy p
