"""Downloads over HTTP/3 by aioquic, and changes its address on the way.

Arguments: the server's name and its certificate, its address and port, how many bytes there are between two changes, and
addresses to send from, one after the other. Every second change is a migration, with another connection ID; the others look as
if a NAT had forgotten the client. Prints which server has answered, and with how many bytes.
"""

import json
import select
import socket
import sys
import time

from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import ConnectionTerminated, HandshakeCompleted

PATIENCE = 60


class Download:
    def __init__(self, name, certificate, server, part, addresses):
        self.name, self.server, self.part, self.addresses = name, server, part, addresses
        configuration = QuicConfiguration(is_client=True, alpn_protocols=H3_ALPN, server_name=name)
        configuration.load_verify_locations(certificate)
        configuration.idle_timeout = 3.0
        configuration.max_stream_data = part // 2
        self.quic = QuicConnection(configuration=configuration)
        self.http = None
        self.answered_by, self.bytes, self.changes, self.is_over = None, 0, 0, False
        self.socket = self.bound()

    def bound(self):
        here = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        here.bind((self.addresses[self.changes], 0))
        return here

    def change_address(self):
        self.changes += 1
        self.socket.close()
        self.socket = self.bound()
        if self.changes % 2 == 0:
            self.quic.change_connection_id()

    def ask(self):
        self.http = H3Connection(self.quic)
        stream = self.quic.get_next_available_stream_id()
        request = {":method": "GET", ":scheme": "https", ":authority": self.name, ":path": "/"}
        headers = [(name.encode(), value.encode()) for name, value in request.items()]
        self.http.send_headers(stream, headers, end_stream=True)

    def take(self, event):
        if isinstance(event, ConnectionTerminated):
            sys.exit(f"the connection was terminated: {event.reason_phrase or event.error_code}")
        if isinstance(event, HandshakeCompleted):
            self.ask()
        for event in self.http.handle_event(event) if self.http else []:
            if isinstance(event, HeadersReceived):
                self.answered_by = dict(event.headers)[b"server"].decode()
            elif isinstance(event, DataReceived):
                before, self.bytes = self.bytes // self.part, self.bytes + len(event.data)
                self.is_over = event.stream_ended
                if self.bytes // self.part > before and self.changes + 1 < len(self.addresses):
                    self.change_address()

    def send(self):
        for datagram, _ in self.quic.datagrams_to_send(now=time.time()):
            self.socket.sendto(datagram, self.server)

    def run(self):
        end = time.time() + PATIENCE
        self.quic.connect(self.server, now=time.time())
        while not self.is_over:
            self.send()
            now = time.time()
            if now > end:
                sys.exit(f"{self.bytes} bytes after {PATIENCE} s")
            timer = self.quic.get_timer() or now + 1
            if select.select([self.socket], [], [], max(0, min(timer, now + 1) - now))[0]:
                self.quic.receive_datagram(self.socket.recv(65536), self.server, now=time.time())
            elif timer <= time.time():
                self.quic.handle_timer(now=time.time())
            while (event := self.quic.next_event()) is not None:
                self.take(event)
        self.quic.close()
        self.send()


def main():
    name, certificate, address, port, part, *addresses = sys.argv[1:]
    download = Download(name, certificate, (address, int(port)), int(part), addresses)
    download.run()
    result = {"server": download.answered_by, "bytes": download.bytes, "changes": download.changes}
    print(json.dumps(result))


main()
