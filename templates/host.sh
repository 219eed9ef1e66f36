# What the ssh provider asks of a host: constant text, as root. The first line of stdin says what, the next lines are its data; no data
# ever becomes part of a command. Answers are key=value lines; an answer without its last line is none.
set -u
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
umask 022
etc=/etc/kprov
claim=$etc/claim.json
say() { printf '%s=%s\n' "$1" "$2"; }
fail() { printf '%s\n' "$1" >&2; exit 64; }
# One at a time. The folder itself is the lock: nothing is left of it.
lock() { exec 9</etc && flock -w 30 9 || fail "another kprov is at work on this host"; }
plain() { case $1 in ''|.*|*[!0-9A-Za-z.-]*) fail "a damaged request" ;; esac; }
# Whole or not at all, also after a power cut.
put() { printf '%s\n' "$2" >"$1.part" && sync "$1.part" && mv -f "$1.part" "$1" || exit 1; }
ours() { grep -qF "\"clusterUid\":\"$uid\"" "$1" 2>/dev/null; }
keys_of() {
  case $1 in ''|-*|*[!0-9A-Za-z._-]*) fail "a damaged request" ;; esac
  home=$(getent passwd "$1" 2>/dev/null || grep "^$1:" /etc/passwd) || fail "there is no user $1"
  home=$(printf '%s' "$home" | cut -d: -f6)
  # The first of the files that its sshd reads.
  case $home in
    ''|*[!0-9A-Za-z/._-]*) keys= ;;
    *) keys=$(sshd -T -C "user=$1,host=localhost,addr=127.0.0.1" 2>/dev/null |
         sed -n "s|%h|$home|g;s|%u|$1|g;s|^authorizedkeysfile \\([^ %]*\\)\\( .*\\)\\{0,1\\}\$|\\1|p") ;;
  esac
  case $keys in ''|none) keys=.ssh/authorized_keys ;; esac
  case $keys in /*) ;; *) keys=$home/$keys ;; esac
}
admit() {
  keys_of "$1"
  [ -n "$2" ] || return 0
  grep -qxF -- "$2" "$keys" 2>/dev/null && return 0
  if [ ! -d "${keys%/*}" ]; then mkdir -m 0700 "${keys%/*}" && chown "$1:" "${keys%/*}" || exit 1; fi
  if [ ! -f "$keys" ]; then (umask 077; : >"$keys") && chown "$1:" "$keys" || exit 1; fi
  # Somebody's last line may lack its end.
  [ -z "$(tail -c 1 "$keys")" ] || echo >>"$keys"
  printf '%s\n' "$2" >>"$keys" || exit 1
}
dismiss() {
  keys_of "$1"
  [ -f "$keys" ] && grep -q " kprov:$uid\$" "$keys" || return 0
  sed -i --follow-symlinks "/ kprov:$uid\$/d" "$keys" || exit 1
  [ -s "$keys" ] && return 0
  rm -f "$keys"
  case $keys in "$home"/*) rmdir "${keys%/*}" 2>/dev/null ;; esac
  return 0
}
tidy() { rmdir "$etc/clusters" "$etc" 2>/dev/null; return 0; }
# Shared filesystems: a folder each, exported to the cluster's machines alone.
shares=/var/lib/kprov-filesystems
exports=/etc/exports.d
# While it is there, the NFS server runs for kprov alone.
server=$etc/nfs-server
has_shares() { ls "$exports"/kprov."$1".*.exports >/dev/null 2>&1; }
# Port 2049 (0801) in state LISTEN (0A).
serves() { grep -qs '^ *[0-9]*: [0-9A-F]*:0801 [0-9A-F]*:0000 0A ' /proc/net/tcp /proc/net/tcp6; }
clients_of() { exportfs -s 2>/dev/null | sed -n "s|^$1[[:space:]][[:space:]]*\\([^(]*\\)(.*|\\1|p"; }
at() { case $1 in *:*) printf '[%s]' "$1" ;; *) printf '%s' "$1" ;; esac; }
# A daemon must not keep the lock, nor the connection.
nfs_server() {
  if [ -d /run/systemd/system ]; then
    case $1 in start) systemctl enable --now nfs-server ;; stop) systemctl disable --now nfs-server ;; esac
  else
    { [ "$1" = stop ] || [ ! -x /etc/init.d/rpcbind ] || service rpcbind start; } && service nfs-kernel-server "$1"
  fi </dev/null >&2 9<&-
}
# Waits for another package manager at work: apt's own option does so for one of its locks only.
packages() {
  tries=90
  until words=$(DEBIAN_FRONTEND=noninteractive LC_ALL=C apt-get --yes --quiet "$@" 2>&1 </dev/null 9<&-); do
    case $words in *"Could not get lock"*|*"Unable to acquire the dpkg frontend lock"*|*"Unable to lock"*) ;; *) tries=0 ;; esac
    [ "$tries" -gt 0 ] || { printf '%s\n' "$words" | tail -n 5 >&2; return 1; }
    tries=$((tries - 1))
    sleep 2
  done
}
serve() {
  if ! command -v exportfs >/dev/null 2>&1; then
    command -v apt-get >/dev/null 2>&1 || fail "there is no NFS server (exportfs), and no apt-get to install one with"
    : >"$server"
    install="install --no-install-recommends nfs-kernel-server"
    { packages $install || { packages update && packages $install; }; } || fail "nfs-kernel-server cannot be installed"
  fi
  serves && return 0
  : >"$server"
  nfs_server start
  tries=50
  until serves; do
    tries=$((tries - 1))
    [ "$tries" -gt 0 ] || fail "its NFS server does not start"
    sleep 0.2
  done
}

read -r what
read -r uid
plain "$uid"
case $what in
look)
  [ -r "$claim" ] && say claim "$(cat "$claim")"
  for file in "$etc"/clusters/*/*.json; do
    [ -f "$file" ] || continue
    folder=${file%/*}
    say record "${folder##*/} ${file##*/} $(cat "$file")"
  done
  for file in "$exports"/kprov.*.exports; do
    [ -f "$file" ] && say share "$(sed -n '1s/^# //p' "$file")"
  done
  exportfs -s 2>/dev/null | sed -n "s|^\\($shares/[^[:space:]]*\\)[[:space:]]*\\([^(]*\\)(.*|exported=\\1 \\2|p"
  serves && say nfs yes
  ip -4 -o addr show scope global 2>/dev/null | sed -n 's/.* inet \([0-9.]*\)\/*\([0-9]*\).*/address=\1\nlink=\1\/\2/p'
  ip -4 route get 192.0.2.1 2>/dev/null | sed -n 's/.* src \([0-9.]*\).*/source=\1/p'
  sshd -T 2>/dev/null | sed -n 's/^port /port=/p' | head -n 1
  { sshd -T 2>/dev/null | sed -n 's/^hostkey //p'; ls /etc/ssh/ssh_host_*_key 2>/dev/null; } | sort -u | while read -r key; do
    [ -r "$key.pub" ] && say hostkey "$(cut -d' ' -f1,2 "$key.pub")"
  done
  ;;
claim)
  read -r machine; read -r user; read -r key; read -r text
  plain "$machine"
  lock
  if [ -s "$claim" ] && ! { ours "$claim" && grep -qF "\"machine\":\"$machine\"" "$claim"; }; then
    say taken "$(cat "$claim")"
  else
    mkdir -p "$etc" && admit "$user" "$key" && put "$claim" "$text"
  fi
  ;;
release)
  read -r machine; read -r user
  plain "$machine"
  lock
  if [ -s "$claim" ] && ! { ours "$claim" && grep -qF "\"machine\":\"$machine\"" "$claim"; }; then
    say taken "$(cat "$claim")"
  else
    if [ -x /usr/local/bin/kprov ] && { [ ! -e "$etc/host.json" ] || grep -qF "\"$uid\"" "$etc/host.json"; }; then
      /usr/local/bin/kprov host remove >&2 || exit 1
    fi
    rm -f /usr/local/bin/.kprov.*.part "$etc"/.program.sum.* "$etc"/*.part
    # The one who keeps the cluster's record, or a filesystem of it, is still needed.
    [ -d "$etc/clusters/$uid" ] || has_shares "$uid" || dismiss "$user"
    rm -f "$claim"
    tidy
  fi
  ;;
put)
  read -r name; read -r user; read -r key; read -r text
  plain "$name"
  lock
  mkdir -p "$etc/clusters/$uid" && admit "$user" "$key" && put "$etc/clusters/$uid/$name.json" "$text"
  ;;
drop)
  read -r name
  plain "$name"
  lock
  rm -f "$etc/clusters/$uid/$name.json"
  rmdir "$etc/clusters/$uid" 2>/dev/null
  tidy
  ;;
forget)
  read -r user
  lock
  rm -rf "${etc:?}/clusters/$uid"
  ours "$claim" || has_shares "$uid" || dismiss "$user"
  tidy
  ;;
share)
  read -r name; read -r folder; read -r number; read -r clients; read -r text
  plain "$name"
  case $number in ''|*[!0-9a-f]*) fail "a damaged request" ;; esac
  case $clients in *[!0-9A-Fa-f.:\ ]*) fail "a damaged request" ;; esac
  [ "$folder" = "$shares/$uid/$name" ] || fail "a damaged request"
  lock
  # Clients come from any port; the number stays when the folder moves to another disk.
  options=rw,sync,no_subtree_check,no_root_squash,insecure,fsid=$number
  line=$folder
  for client in $clients; do line="$line $client($options)"; done
  mkdir -p "$etc" "$exports" "$folder" || exit 1
  [ -e /etc/exports ] || : >/etc/exports
  # Before the server starts, which reads it; what counts is what the server says afterwards.
  put "$exports/kprov.$uid.$name.exports" "# $text
$line"
  serve
  for client in $clients; do exportfs -o "$options" "$(at "$client"):$folder" >&2 || exit 1; done
  clients_of "$folder" | while read -r client; do
    case " $clients " in *" $client "*) ;; *) exportfs -u "$(at "$client"):$folder" >&2 ;; esac
  done
  tidy
  ;;
unshare)
  read -r name; read -r user
  plain "$name"
  lock
  folder=$shares/$uid/$name
  clients_of "$folder" | while read -r client; do exportfs -u "$(at "$client"):$folder" >&2; done
  [ -z "$(clients_of "$folder")" ] || fail "$folder is still exported"
  rm -rf --one-file-system "$folder" || exit 1
  rmdir "$shares/$uid" "$shares" 2>/dev/null
  rm -f "$exports/kprov.$uid.$name.exports" "$exports/kprov.$uid.$name.exports.part"
  if [ -e "$server" ] && ! ls "$exports"/kprov.*.exports >/dev/null 2>&1; then
    # Somebody may have come to like it.
    [ -n "$(exportfs -s 2>/dev/null)" ] || nfs_server stop || exit 1
    rm -f "$server"
  fi
  rmdir "$exports" 2>/dev/null
  ours "$claim" || [ -d "$etc/clusters/$uid" ] || has_shares "$uid" || dismiss "$user"
  tidy
  ;;
epoch)
  read -r name; read -r expected; read -r next
  lock
  file=$etc/clusters/$uid/epoch.json
  now=-
  [ -s "$file" ] && now=$(cat "$file")
  if [ "$now" = "$next" ] || [ "$now" = "$expected" ]; then
    mkdir -p "$etc/clusters/$uid" || exit 1
    [ -s "$etc/clusters/$uid/cluster.json" ] || put "$etc/clusters/$uid/cluster.json" "$name"
    put "$file" "$next"
    say swapped yes
  fi
  ;;
admit)
  read -r user; read -r key
  lock
  admit "$user" "$key"
  ;;
*) fail "an unknown request" ;;
esac
say end yes
