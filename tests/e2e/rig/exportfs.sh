#!/bin/sh
# Stands in for exportfs, since this kernel may have no NFS server: keeps its table as the real one prints it, and moves what is exported
# to the folder that the stand-in of mount.nfs4 looks into.
# usage: exportfs -s | -r | -ua | -o OPTIONS CLIENT:FOLDER | -u CLIENT:FOLDER
fail() { echo "exportfs: $1" >&2; exit 1; }
own=$(getent hosts "$(hostname)" | cut -d' ' -f1)
stage=/opt/rig/nfs/$own
table=$stage/.etab
[ -r /etc/exports ] || fail "can't open /etc/exports for reading"
[ "$1" = -s ] || mkdir -p "$stage"

allow() {
  client=$1 folder=$2 options=$3
  [ -d "$folder" ] || fail "Failed to stat $folder: No such file or directory"
  old_ifs=$IFS IFS=,
  for option in $options; do
    case $option in
      rw | ro | sync | async | no_subtree_check | no_root_squash | insecure) ;;
      fsid=*) expr "${option#fsid=}" : '[0-9a-f]\{32\}$' >/dev/null || fail "bad fsid: $option" ;;
      *) fail "unknown keyword \"$option\"" ;;
    esac
  done
  IFS=$old_ifs
  if ! mountpoint -q "$folder"; then
    mkdir -p "$stage$folder" && cp -a "$folder/." "$stage$folder/" && find "$folder" -mindepth 1 -delete
    mount --bind "$stage$folder" "$folder" || exit 1
  fi
  forbid "$client" "$folder"
  echo "$folder  $client($options)" >>"$table"
}
forbid() {
  grep -qsF "$2  $1(" "$table" || return 1
  grep -vF "$2  $1(" "$table" >"$table.part"
  mv "$table.part" "$table"
}
# What nobody may mount lies where it lay.
settle() {
  grep -qs "^$1 " "$table" && return
  mountpoint -q "$1" && umount "$1" && cp -a "$stage$1/." "$1/" && rm -rf "${stage:?}$1"
  [ -s "$table" ] || rm -rf "${stage:?}"
}
of_files() {
  cat /etc/exports /etc/exports.d/*.exports 2>/dev/null | grep '^/' | while read -r folder clients; do
    for client in $clients; do echo "${client%%(*} $folder $(expr "$client" : '.*(\(.*\))')"; done
  done
}
case $1 in
-s) [ ! -f "$table" ] || cat "$table" ;;
-r) of_files | while read -r client folder options; do allow "$client" "$folder" "$options" || exit 1; done ;;
-ua)
  folders=$(cut -d' ' -f1 "$table" 2>/dev/null | sort -u)
  : >"$table"
  for folder in $folders; do settle "$folder"; done
  ;;
-o) allow "${3%:/*}" "/${3#*:/}" "$2" ;;
-u)
  forbid "${2%:/*}" "/${2#*:/}" || fail "Could not find '$2' to unexport."
  settle "/${2#*:/}"
  ;;
*) fail "unknown usage: $*" ;;
esac
exit 0
