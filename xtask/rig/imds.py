"""The instance metadata service, version 2, of an instance whose role can be taken away at any time.

Credentials come from the emulator's own STS, so that the role's policies are what decides. The role is the content of
a file: it is read anew with each request, and an empty or missing file is an instance without a role.
"""

import argparse
import json
import pathlib
import secrets
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import botocore.config
import botocore.exceptions
import botocore.session

ACCOUNT = "000000000000"
INSTANCE_ID = "i-0123456789abcdef0"
TTL_HEADER = "X-aws-ec2-metadata-token-ttl-seconds"
CREDENTIALS = "/latest/meta-data/iam/security-credentials/"
MAX_TTL_SECONDS = 21600


def instance_facts(region):
    document = {"accountId": ACCOUNT, "instanceId": INSTANCE_ID, "region": region, "availabilityZone": region + "a"}
    return {
        "/latest/meta-data/instance-id": INSTANCE_ID,
        "/latest/meta-data/placement/region": region,
        "/latest/meta-data/placement/availability-zone": region + "a",
        "/latest/dynamic/instance-identity/document": json.dumps(document),
    }


class Metadata:
    """What all requests share."""

    def __init__(self, emulator, region, role_file):
        self.facts = instance_facts(region)
        self.role_file = role_file
        self.tokens = {}
        self.cached = {}
        self.sts = botocore.session.get_session().create_client(
            "sts",
            region_name=region,
            endpoint_url=emulator,
            aws_access_key_id="test",
            aws_secret_access_key="test",
            config=botocore.config.Config(connect_timeout=2, read_timeout=10, retries={"max_attempts": 0}),
        )

    def role(self):
        try:
            return self.role_file.read_text().strip()
        except FileNotFoundError:
            return ""

    def credentials(self, role):
        """New ones, since the emulator forgets sessions when it is started anew; in an outage, the last ones."""
        try:
            arn = f"arn:aws:iam::{ACCOUNT}:role/{role}"
            answer = self.sts.assume_role(RoleArn=arn, RoleSessionName=INSTANCE_ID)["Credentials"]
        except botocore.exceptions.BotoCoreError:
            return self.cached[role]
        self.cached[role] = {
            "Code": "Success",
            "Type": "AWS-HMAC",
            "LastUpdated": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "AccessKeyId": answer["AccessKeyId"],
            "SecretAccessKey": answer["SecretAccessKey"],
            "Token": answer["SessionToken"],
            "Expiration": answer["Expiration"].strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        return self.cached[role]


class Handler(BaseHTTPRequestHandler):
    """One request; `metadata` is set on the class before the server starts."""

    metadata = None

    def do_PUT(self):
        lifetime = self.headers.get(TTL_HEADER, "")
        if self.path != "/latest/api/token" or not lifetime.isdigit() or not 1 <= int(lifetime) <= MAX_TTL_SECONDS:
            return self.reply(400, "bad token request")
        token = secrets.token_urlsafe(40)
        self.metadata.tokens[token] = time.monotonic() + int(lifetime)
        return self.reply(200, token, {TTL_HEADER: lifetime})

    def do_GET(self):
        token = self.headers.get("X-aws-ec2-metadata-token", "")
        if self.metadata.tokens.get(token, 0) < time.monotonic():
            return self.reply(401, "unauthorized")
        role = self.metadata.role()
        if self.path in self.metadata.facts:
            return self.reply(200, self.metadata.facts[self.path])
        if role and self.path in (CREDENTIALS, CREDENTIALS.rstrip("/")):
            return self.reply(200, role)
        if role and self.path == CREDENTIALS + role:
            return self.reply(200, json.dumps(self.metadata.credentials(role)))
        return self.reply(404, "not found")

    def reply(self, status, text, headers=None):
        body = text.encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--emulator", required=True, help="URL of the STS emulator")
    parser.add_argument("--region", required=True)
    parser.add_argument("--role-file", type=pathlib.Path, required=True)
    arguments = parser.parse_args()
    Handler.metadata = Metadata(arguments.emulator, arguments.region, arguments.role_file)
    ThreadingHTTPServer(("127.0.0.1", arguments.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
