# Shared by nginx/run and postgres/run: servers that know nothing of SPIFFE and read what `mayfly
# sidecar` keeps for them. Sourced after lib.sh.

# A Mayfly with a profile for clients, who are us, and one for servers, who are the user $1. Other
# users can reach its socket; who is who, the broker sees from user and program.
start_servers_mayfly() {
    make_workdir
    chmod 711 "$work"
    mkdir -m 711 "$work/public"
    local role
    for role in client server; do
        ln "$MAYFLY" "$work/public/$role" 2> /dev/null || cp "$MAYFLY" "$work/public/$role"
    done
    sed -e "s,@PUBLIC@,$work/public,g" -e "s/@SERVER_UID@/$(id -u "$1")/" "$here/servers.toml" > "$work/servers.toml"
    start_mayfly "$work/servers.toml"
}

# Keeps files as a $1 (client or server) in the directory $2, as the user $3, and runs $4 after each
# change. Returns when the first set lies there; $sidecar_pid is the process, and so the task's holder.
start_sidecar() {
    local as=() i
    [ "$3" = "$(id -un)" ] || as=(setpriv --reuid "$3" --regid "$(id -g "$3")" --clear-groups)
    # exec: the task is bound to the process that speaks to the socket.
    (exec ${as[@]+"${as[@]}"} "$work/public/$1" --data-dir "$work/nowhere" --output json sidecar \
        --dir "$2" --socket "unix://$work/public/workload.sock" --on-renew "$4") > "$work/$1.out" 2> "$work/$1.err" &
    sidecar_pid=$!
    disown "$sidecar_pid" # It is killed on purpose, and nobody needs to read that.
    sidecars+=("$sidecar_pid")
    for i in $(seq 300); do
        if grep -q '"written"' "$work/$1.out"; then return; fi
        kill -0 "$sidecar_pid" 2> /dev/null || break
        sleep 0.1
    done
    cat "$work/$1.out" "$work/$1.err" >&2
    die "the sidecar of the $1 wrote nothing"
}
sidecars=()
stop_sidecars() {
    local pid
    for pid in ${sidecars[@]+"${sidecars[@]}"}; do stop "$pid"; done
}

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
