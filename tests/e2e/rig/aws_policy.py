"""What an AWS policy allows: statements over actions, resources and the conditions that kprov's policies use. Pure.

A call asks for one or more things, each an action on a resource in a context (`Ask`); all of them must be allowed. What AWS checks
beside the call's own action is asked for, too: tags at creation, a role that is handed to a machine.
"""

import fnmatch
import json
import re
from collections import namedtuple

Ask = namedtuple("Ask", "action resource context")

EC2_KINDS = {
    "vpc": "vpc", "subnet": "subnet", "igw": "internet-gateway", "rtb": "route-table", "sg": "security-group", "i": "instance",
    "vol": "volume", "eni": "network-interface", "ami": "image", "rtbassoc": "route-table",
}
MADE_BY_EC2 = {
    "CreateVpc": ["vpc"], "CreateSubnet": ["subnet"], "CreateInternetGateway": ["internet-gateway"], "CreateRouteTable": ["route-table"],
    "CreateSecurityGroup": ["security-group"], "ImportKeyPair": ["key-pair"], "RunInstances": ["instance", "volume", "network-interface"],
}


def allowed(statements, ask):
    return any(statement["Effect"] == "Allow" and matches(statement, ask) for statement in statements)


def matches(statement, ask):
    many = lambda value: [value] if isinstance(value, str) else value  # noqa: E731
    # Actions are told apart without regard to case, resources with it; "*" as a resource is everything.
    action = any(fnmatch.fnmatchcase(ask.action.lower(), pattern.lower()) for pattern in many(statement["Action"]))
    resource = any(fnmatch.fnmatchcase(ask.resource, pattern) for pattern in many(statement["Resource"]))
    return action and resource and conditions_hold(statement.get("Condition", {}), ask.context)


def conditions_hold(conditions, context):
    for operator, keys in conditions.items():
        for key, wanted in keys.items():
            wanted = [wanted] if isinstance(wanted, str) else wanted
            given = context.get(key)
            if operator == "StringEquals" and given not in wanted:
                return False
            if operator == "Null" and (given is None) != (wanted == ["true"]):
                return False
            if operator not in ("StringEquals", "Null"):
                raise ValueError(f"this rig does not know the condition {operator}")
    return True


def asks(service, action, form, account, tags_of):
    """`form`: the call's parameters, flat (query services) or as its JSON. `tags_of(id)`: of a thing that exists."""
    whole = f"{service}:{action}"
    family = {"ec2": of_ec2, "elasticloadbalancing": of_elb, "elasticfilesystem": of_efs, "ssm": of_ssm, "iam": of_iam}.get(service)
    found = family(whole, action, form, account, tags_of) if family and not action.startswith("Describe") else []
    return found or [Ask(whole, "*", {})]


def of_ec2(whole, action, form, account, tags_of):
    arn = lambda kind, name: f"arn:aws:ec2:region:{account}:{kind}/{name}"  # noqa: E731
    found = []
    tagged = {}
    for number in range(1, 10):
        kind = form.get(f"TagSpecification.{number}.ResourceType")
        if kind:
            tagged[kind] = pairs(form, f"TagSpecification.{number}.Tag.{{}}.Key", f"TagSpecification.{number}.Tag.{{}}.Value")
    for kind in MADE_BY_EC2.get(action, []):
        context = request_tags(tagged.get(kind, {}))
        found.append(Ask(whole, arn(kind, "new"), context))
        if kind in tagged:
            found.append(Ask("ec2:CreateTags", arn(kind, "new"), {**context, "ec2:CreateAction": action}))
    for key, value in form.items():
        begin = re.fullmatch(r"([a-z]+)-[0-9a-f]{8,}", value)
        if begin and begin[1] in EC2_KINDS and "UserData" not in key:
            found.append(Ask(whole, arn(EC2_KINDS[begin[1]], value), resource_tags(tags_of(value))))
        if key == "KeyName" and action in ("RunInstances", "DeleteKeyPair"):
            found.append(Ask(whole, arn("key-pair", value), resource_tags(tags_of(value))))
    role = form.get("IamInstanceProfile.Name")
    return found + ([pass_role(role, account)] if role else [])


def of_elb(whole, action, form, account, tags_of):
    tags = pairs(form, "Tags.member.{}.Key", "Tags.member.{}.Value")
    found = []
    if action in ("CreateLoadBalancer", "CreateTargetGroup"):
        kind = {"CreateLoadBalancer": "loadbalancer/net", "CreateTargetGroup": "targetgroup"}[action]
        found.append(Ask(whole, f"arn:aws:elasticloadbalancing:region:{account}:{kind}/{form['Name']}/new", request_tags(tags)))
        # Asked in the caller's name: whether the groups are the network's.
        if "SecurityGroups.member.1" in form:
            found.append(Ask("ec2:GetSecurityGroupsForVpc", f"arn:aws:ec2:region:{account}:vpc/vpc-1", {}))
    else:
        arns = [value for value in form.values() if value.startswith("arn:aws:elasticloadbalancing:")]
        found = [Ask(whole, arn, {**resource_tags(tags_of(arn)), **request_tags(tags)}) for arn in arns]
    if tags and action.startswith("Create"):
        found.append(Ask("elasticloadbalancing:AddTags", "*", {**request_tags(tags), "elasticloadbalancing:CreateAction": action}))
    return found


def of_efs(whole, action, form, account, tags_of):
    arn = f"arn:aws:elasticfilesystem:region:{account}:file-system/"
    if action == "CreateFileSystem":
        context = request_tags({tag["Key"]: tag["Value"] for tag in form.get("Tags", [])})
        tagging = Ask("elasticfilesystem:TagResource", arn + "new", {**context, "elasticfilesystem:CreateAction": action})
        return [Ask(whole, arn + "new", context), tagging]
    system = form.get("FileSystemId") or form.get("of")
    found = [Ask(whole, arn + str(system), resource_tags(tags_of(system)))]
    if action == "CreateMountTarget":
        things = [("network-interface", "new"), ("subnet", form["SubnetId"])] + [("security-group", one) for one in form.get("SecurityGroups", [])]
        found += [Ask("ec2:CreateNetworkInterface", f"arn:aws:ec2:region:{account}:{kind}/{one}", resource_tags(tags_of(one))) for kind, one in things]
    if action == "DeleteMountTarget":
        found.append(Ask("ec2:DeleteNetworkInterface", f"arn:aws:ec2:region:{account}:network-interface/eni-1", {}))
    return found


def of_ssm(whole, action, form, account, tags_of):
    name = form.get("Name") or form.get("Path") or form.get("ResourceId") or ""
    arn = f"arn:aws:ssm:{form.get('region', '')}:{account}:parameter{name}"
    return [Ask(whole, arn, {})] + ([Ask("ssm:AddTagsToResource", arn, {})] if form.get("Tags") else [])


def of_iam(whole, action, form, account, tags_of):
    arn = lambda kind, name: f"arn:aws:iam::{account}:{kind}/{name}"  # noqa: E731
    if action == "AddRoleToInstanceProfile":
        return [Ask(whole, arn("instance-profile", form["InstanceProfileName"]), {}), pass_role(form["RoleName"], account)]
    if "InstanceProfileName" in form:
        found = [Ask(whole, arn("instance-profile", form["InstanceProfileName"]), {})]
        return found + ([Ask("iam:TagInstanceProfile", found[0].resource, {})] if "Tags.member.1.Key" in form else [])
    found = [Ask(whole, arn("role", form["RoleName"]), {})] if "RoleName" in form else []
    return found + ([Ask("iam:TagRole", found[0].resource, {})] if found and "Tags.member.1.Key" in form else [])


def pass_role(profile, account):
    """kprov's profiles have the names of their roles."""
    return Ask("iam:PassRole", f"arn:aws:iam::{account}:role/{profile}", {"iam:PassedToService": "ec2.amazonaws.com"})


def pairs(form, keys, values):
    found = {}
    for number in range(1, 50):
        if keys.format(number) in form:
            found[form[keys.format(number)]] = form.get(values.format(number), "")
    return found


def request_tags(tags):
    return {f"aws:RequestTag/{key}": value for key, value in tags.items()}


def resource_tags(tags):
    return {f"aws:ResourceTag/{key}": value for key, value in tags.items()}


def statements(document):
    found = json.loads(document)["Statement"]
    return found if isinstance(found, list) else [found]
