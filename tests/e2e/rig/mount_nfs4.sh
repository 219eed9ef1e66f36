#!/bin/sh
# Stands in for mount.nfs4 and mount.nfs, since this kernel may have no NFS: checks what it is told as the real one would, and binds a
# shared folder.
# usage: mount.nfs4 SERVER:PATH FOLDER [-o OPTIONS]     (as mount(8) calls it)
name=$(basename "$0")
fail() { echo "$name: $1" >&2; exit 32; }
source=$1
target=$2
shift 2
options=
while [ $# -gt 0 ]; do
  case $1 in
    -o) options=$2; shift 2 ;;
    -v | -n | -w | -r) shift ;;
    *) fail "unknown argument $1" ;;
  esac
done
server=${source%%:*}
path=${source#*:}
[ "$server:$path" = "$source" ] || fail "$source is not SERVER:PATH"
case $path in /*) ;; *) fail "$path is not an absolute path" ;; esac
old_ifs=$IFS
IFS=,
for option in $options; do
  case $option in
    rw | ro | hard | noresvport | _netdev | nofail | noatime | nosuid | nodev | nfsvers=4 | nfsvers=4.[012] | vers=4 | vers=4.[012] | minorversion=[012]) ;;
    nfsvers=3 | vers=3) [ "$name" = mount.nfs ] || fail "an incorrect mount option was specified: $option" ;;
    soft) fail "soft mounts lose writes" ;;
    rsize=* | wsize=* | timeo=* | retrans=* | port=2049 | sec=sys | nconnect=*) ;;
    *) fail "an incorrect mount option was specified: $option" ;;
  esac
done
IFS=$old_ifs
[ -d "$target" ] || fail "mount point $target does not exist"
[ -d "/opt/rig/nfs/$server" ] || fail "Connection timed out: no mount target answers at $server"
[ -d "/opt/rig/nfs/$server$path" ] || fail "mounting $source failed, reason given by server: No such file or directory"
# A server that keeps a table serves those in it: from any port only where the export says so.
if [ -f "/opt/rig/nfs/$server/.etab" ]; then
  timeout 5 bash -c ": </dev/tcp/$server/2049" 2>/dev/null || fail "Connection refused"
  own=$(getent hosts "$(hostname)" | cut -d' ' -f1)
  entry=$(grep -F "$path  $own(" "/opt/rig/nfs/$server/.etab") || fail "access denied by server while mounting $source"
  case ",$options,$entry" in *,noresvport,*insecure*) ;; *,noresvport,*) fail "Operation not permitted" ;; esac
fi
echo "$source $target $options" >>"/var/log/$name.log"
exec mount --bind "/opt/rig/nfs/$server$path" "$target"
