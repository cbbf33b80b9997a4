# The demo, by the program that is `cargo xtask` outside, on what lies in
# /programs. Each line it prints goes out behind the word DEMO.
begin "the demo runs"
# shellcheck disable=SC2046
./xtask demo --installed / $(cat /demo.arguments) < /dev/null > /tmp/demo 2> /tmp/step
code=$?
cat /tmp/step
sed 's/^/DEMO /' /tmp/demo
equal "the demo runs" "exit code 0" "exit code $code"
