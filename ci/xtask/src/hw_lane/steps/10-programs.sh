# Programs run, also with threads, those that fault die alone, those that loop can
# be killed: the interrupt from Linux reaches a core that never leaves the program.
create t --cores 1 --mem 64M
fact t kernel_mode $mode
fact t platform hardware
step "a program runs" 0 ./enclavectl run t -- ./tls
for fault in null:139 code:139 jump:139 stack:139 wild:139 divide:136 ud2:132; do
    step "fault ${fault%:*} ends its program" ${fault#*:} \
        ./enclavectl run t -- ./segv ${fault%:*}
done

begin "timers send signals as on Linux"
./timers > /tmp/expected 2>&1 < /dev/null
timeout -s KILL $limit ./enclavectl run t -- ./timers > /tmp/found 2>&1 < /dev/null
diff /tmp/expected /tmp/found
equal "timers send signals as on Linux" "$(cat /tmp/expected)" "$(cat /tmp/found)"

step "threads take turns on the core" 0 ./enclavectl run t -- ./threads
step "the last thread ends its program" 0 ./enclavectl run t -- ./threads leave

begin "handlers are called as by Linux"
./signals > /tmp/expected 2>&1 < /dev/null
timeout -s KILL $limit ./enclavectl run t -- ./signals > /tmp/found 2>&1 < /dev/null
diff /tmp/expected /tmp/found
equal "handlers are called as by Linux" "$(cat /tmp/expected)" "$(cat /tmp/found)"
for end in abort:134 blocked:139 nowhere:139 wild:139; do
    step "handler ${end%:*} ends its program" ${end#*:} ./enclavectl run t -- ./signals ${end%:*}
done

begin "a looping program is killed"
run_until t spinning ./spin
kill -TERM $run
ended $run
code=$?
equal "a looping program is killed" "exit code 143" "exit code $code"

step "the next program runs" 0 ./enclavectl run t -- ./tls
./enclavectl logs t
step "destroy t" 0 ./enclavectl destroy t
