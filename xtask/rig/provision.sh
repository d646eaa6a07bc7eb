#!/bin/bash
# Sets up the account as the old shell recipe does, with the real AWS CLI, and adds the roles of the scenarios.
# Reads AWS_ENDPOINT_URL and STRICT_KMS_URL (a second KMS whose ciphertext is authenticated).
set -euo pipefail

bucket=an-internalstoragekeybucket
alias=alias/EncFSForEC2InternalStorageKey
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

strict() { AWS_ENDPOINT_URL_KMS=$STRICT_KMS_URL "$@"; }

# create_key: a key with the recipe's alias; prints its ARN.
create_key() {
    local arn
    arn=$(aws kms create-key --query KeyMetadata.Arn --output text)
    aws kms create-alias --alias-name "$alias" --target-key-id "$arn"
    echo "$arn"
}

# store OBJECT FILE [ARGUMENT]...: encrypts FILE and stores the raw ciphertext.
store() {
    local object=$1 file=$2
    shift 2
    aws kms encrypt --key-id "$alias" --plaintext "fileb://$file" --query CiphertextBlob --output text "$@" |
        base64 --decode >ciphertext
    aws s3api put-object --bucket "$bucket" --key "$object" --body ciphertext >put.json
}

# role NAME STATEMENTS
role() {
    aws iam create-role --role-name "$1" --assume-role-policy-document \
        '{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"AWS":"*"},"Action":"sts:AssumeRole"}]}' \
        >role.json
    aws iam put-role-policy --role-name "$1" --policy-name rig \
        --policy-document "{\"Version\":\"2012-10-17\",\"Statement\":[$2]}"
}

key_arn=$(create_key)
strict create_key >strict_arn
aws s3api create-bucket --bucket "$bucket" >bucket.json

echo 'correct horse battery staple' >password
head -c 64 /dev/urandom >random

store LuksInternalStorageKey password
store random-key random
strict store strict/LuksInternalStorageKey password
strict store strict/context random --encryption-context volume=scratch
head -c 20 random | cat ciphertext - >damaged
aws s3api put-object --bucket "$bucket" --key strict/damaged --body damaged >put.json

read_s3='{"Effect":"Allow","Action":"s3:GetObject","Resource":"arn:aws:s3:::'$bucket'/*"},
    {"Effect":"Allow","Action":"s3:ListBucket","Resource":"arn:aws:s3:::'$bucket'"}'
# AWS judges a request that names an alias by the key behind it; the emulator judges it by the alias's own ARN.
alias_arn=${key_arn%key/*}$alias
decrypt='{"Effect":"Allow","Action":"kms:Decrypt","Resource":["'$key_arn'","'$alias_arn'"]}'
role secretfs-reader "$read_s3,$decrypt"
role secretfs-denied "$read_s3"
