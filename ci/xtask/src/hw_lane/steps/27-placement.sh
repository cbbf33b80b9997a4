# A placement policy of the program: told of every chunk at each publish, and its
# wishes are where the copies go.
create t --cores 1 --mem 64M
fact t kernel_mode $mode
begin "a program places its copies itself"
./enclavectl run t -- ./xasm-placement > /tmp/placed 2>&1
code=$?
cat /tmp/placed
equal "a program places its copies itself" "placed, exit code 0" \
    "$(sed -n 's/^\(placed\): .* wishes granted$/\1/p' /tmp/placed), exit code $code"
./enclavectl logs t
step "destroy t" 0 ./enclavectl destroy t
