# Walks the hot paths between marks; the lane counts their instructions.
[ $mode = ring0 ] || return 0
create t --cores 1 --mem 64M
step "every hot path between marks" 0 ./enclavectl run t -- ./xasm-counts --marks
step "destroy t" 0 ./enclavectl destroy t
