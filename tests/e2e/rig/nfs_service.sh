#!/bin/sh
# Stands in for /etc/init.d/nfs-kernel-server: like the real one, it starts where something is exported, and answers at port 2049.
case $1 in
start)
  grep -qs '^/' /etc/exports /etc/exports.d/*.exports || exit 0
  exportfs -r || exit 1
  answer='import socket
server = socket.create_server(("0.0.0.0", 2049))
while True: server.accept()[0].close()'
  setsid python3 -c "$answer" >/dev/null 2>&1 </dev/null &
  echo $! >/run/nfsd.pid
  ;;
stop)
  exportfs -ua
  kill "$(cat /run/nfsd.pid)"
  rm /run/nfsd.pid
  ;;
esac
