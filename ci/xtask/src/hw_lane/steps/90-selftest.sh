# The kernel's self-tests and the parts together, as a user runs them.
step "selftest" 0 ./enclavectl selftest --ring "${mode#ring}" --timeout 55
equal "the parts of selftest work together" 1 "$(grep -c '^ok .* end to end' /tmp/step)"
