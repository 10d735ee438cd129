#!/bin/sh
# A SuperNode, with the key in /keys, or with the first key in a folder of /keys that no other client
# of this host holds: a lock on it ends with its holder, killed or not.
set -eu
: "${CSG_SERVER:?set it to HOST:PORT of the proxy of the deployment}"
take() {
  exec 9< "$1/key" && flock --nonblock 9
}
folder=
closed=
for candidate in /keys /keys/*; do
  if [ -r "$candidate/key" ]; then
    if take "$candidate"; then folder=$candidate; break; fi
  elif [ -e "$candidate/key" ] || { [ -d "$candidate" ] && [ ! -x "$candidate" ]; }; then
    closed=$candidate
  fi
done
[ -n "$folder" ] || [ -z "$closed" ] || { echo "start-client: $closed is not open to user $(id -u); set CSG_UID to its owner, or give it to that user" >&2; exit 2; }
[ -n "$folder" ] || { echo "start-client: no free key in /keys; keys add makes one more client" >&2; exit 2; }
place="partition-id=$(cat "$folder/partition") interface=\"${CSG_INTERFACE:-auto}\""
[ -z "${CSG_DATA_DIR:-}" ] || place="$place data-dir=\"$CSG_DATA_DIR\""
case "${CSG_OWN_PICTURES:-no}" in
  yes) place="$place data-folder=\"${CSG_DATA_DIR:?set it to the folder of the pictures}\"" ;;
  no) ;;
  *) echo "start-client: CSG_OWN_PICTURES=$CSG_OWN_PICTURES: give yes or no" >&2; exit 2 ;;
esac
if [ -n "${CSG_CPUS:-}" ]; then # a limit may be a part of a processor
  threads=${CSG_CPUS%%.*}
  [ "${threads:-0}" -ge 1 ] || threads=1
  export OMP_NUM_THREADS="$threads"
fi
echo "start-client: $folder"
exec python -m client.supernode --superlink "$CSG_SERVER" --root-certificates "$folder/ca.crt" \
  --auth-supernode-private-key "$folder/key" --node-config "$place" "$@"
