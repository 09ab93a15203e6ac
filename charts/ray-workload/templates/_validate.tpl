{{/* A JSON list of the mistakes that the schema cannot detect, each with its fix. validate.yaml reports them. */}}
{{- define "ray-workload.mistakes" -}}
{{- $found := list -}}
{{- $operator := index .Values "kuberay-operator" -}}
{{- if and $operator.enabled -}}
  {{- if and (gt (int $operator.replicas) 1) (not $operator.leaderElectionEnabled) -}}
    {{- $found = append $found "kuberay-operator.replicas is more than 1: set kuberay-operator.leaderElectionEnabled=true" -}}
  {{- end -}}
  {{- if and $operator.watchNamespace (not (has .Release.Namespace $operator.watchNamespace)) (include "ray-workload.cluster" .) -}}
    {{- $found = append $found (printf "kuberay-operator.watchNamespace does not contain the namespace of the release: add %s" .Release.Namespace) -}}
  {{- end -}}
  {{- if not $operator.singleNamespaceInstall -}}
    {{- range dig "items" list (lookup "apps/v1" "Deployment" "" "" | default dict) -}}
      {{- if and (eq "kuberay-operator" (dig "metadata" "labels" "app.kubernetes.io/name" "" .)) (ne (printf "%s/%s" $.Release.Namespace $.Release.Name) (printf "%s/%s" .metadata.namespace (dig "metadata" "annotations" "meta.helm.sh/release-name" "" .))) -}}
        {{- $found = append $found (printf "a KubeRay operator is already running in namespace %s: set kuberay-operator.enabled=false to use it" .metadata.namespace) -}}
      {{- end -}}
    {{- end -}}
  {{- end -}}
{{- else if not (index .Values "ray-cluster" "enabled") -}}
  {{- $found = append $found "kuberay-operator.enabled and ray-cluster.enabled are both false: enable at least one" -}}
{{- end -}}
{{- if include "ray-workload.cluster" . -}}
  {{- $found = concat $found (include "ray-workload.mistakes.cluster" . | fromJsonArray) -}}
  {{- $found = concat $found (include "ray-workload.mistakes.auth" . | fromJsonArray) -}}
  {{- range $name, $group := include "ray-workload.groups" . | fromYaml -}}
    {{- $found = concat $found (include "ray-workload.mistakes.group" (dict "context" $ "name" $name "group" $group) | fromJsonArray) -}}
  {{- end -}}
  {{- $found = concat $found (include "ray-workload.mistakes.secrets" . | fromJsonArray) -}}
{{- end -}}
{{ toJson $found }}
{{- end -}}

{{/* Not empty if YAML reads a name as a number, a boolean or null. The upstream charts do not quote names. */}}
{{- define "ray-workload.misread" -}}
{{ regexFind "^([0-9][0-9._]*(e[-+]?[0-9]+)?|0[xob][0-9a-f_]+|true|false|yes|no|on|off|null|y|n)$" . }}
{{- end -}}

{{/* The path of a worker group in the values. Takes (list $ NAME). */}}
{{- define "ray-workload.groupPath" -}}
{{- $worker := index (index . 0).Values "ray-cluster" "worker" -}}
{{- if and (eq (index . 1) $worker.groupName) (not $worker.disabled) }}ray-cluster.worker
{{- else }}ray-cluster.additionalWorkerGroups.{{ index . 1 }}
{{- end -}}
{{- end -}}

{{- define "ray-workload.mistakes.cluster" -}}
{{- $found := list -}}
{{- $cluster := include "ray-workload.cluster" . -}}
{{- $ray := index .Values "ray-cluster" -}}
{{- $head := $ray.head -}}
{{- if gt (len $cluster) 53 -}}
  {{- $found = append $found (printf "the cluster name %s has %d characters, but at most 53 are allowed: set ray-cluster.fullnameOverride" $cluster (len $cluster)) -}}
{{- else if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $cluster) -}}
  {{- $found = append $found (printf "the cluster name %s must start with a letter, contain only a-z, 0-9 and -, and not end with -: set ray-cluster.fullnameOverride" $cluster) -}}
{{- end -}}
{{- range $what, $name := dict "the release name" .Release.Name "the namespace" .Release.Namespace "the cluster name" $cluster "serviceAccounts.head.name" .Values.serviceAccounts.head.name "ray-cluster.head.serviceAccountName" $head.serviceAccountName "serviceAccounts.worker.name" .Values.serviceAccounts.worker.name -}}
  {{- if include "ray-workload.misread" $name -}}
    {{- $found = append $found (printf "%s is %q, which YAML reads as a number or a keyword: choose another name" $what $name) -}}
  {{- end -}}
{{- end -}}
{{- $accounts := .Values.serviceAccounts -}}
{{- if and $accounts.head.create $accounts.worker.create (eq $accounts.head.name $accounts.worker.name) -}}
  {{- $found = append $found (printf "serviceAccounts.head.name and serviceAccounts.worker.name are both %s: use different names, or set serviceAccounts.worker.create=false" $accounts.head.name) -}}
{{- end -}}
{{- $version := regexFind "^[0-9]+\\.[0-9]+\\.[0-9]+" ($head.rayVersion | default "") -}}
{{- if not $version -}}
  {{- $found = append $found "ray-cluster.head.rayVersion is missing: set it to the Ray version of the image, e.g. 2.60.0" -}}
{{- else -}}
  {{- if and .Values.auth.enabled (semverCompare "<2.52.0" $version) -}}
    {{- $found = append $found (printf "ray-cluster.head.rayVersion is %s, which does not support token authentication: use Ray 2.52.0 or later, or set auth.enabled=false" $version) -}}
  {{- end -}}
  {{- $image := $head.image | default $ray.image -}}
  {{- $tag := regexFind "^[0-9]+\\.[0-9]+\\.[0-9]+" $image.tag -}}
  {{- if and $tag (ne $tag $version) -}}
    {{- $found = append $found (printf "ray-cluster.head.rayVersion is %s, but the image tag is %s: use the same version in both" $version $image.tag) -}}
  {{- end -}}
{{- end -}}
{{- if $head.ports -}}
  {{- $names := list -}}
  {{- range $head.ports }}{{ $names = append $names .name }}{{ end -}}
  {{- $dashboard := include "ray-workload.startPort" (list $head "dashboard-port" 8265) -}}
  {{- if not (has "dashboard" $names) -}}
    {{- $found = append $found (printf "ray-cluster.head.ports has no port named dashboard: add {name: dashboard, containerPort: %s}" $dashboard) -}}
  {{- else if ne $dashboard (include "ray-workload.headPort" (list . "dashboard" 8265)) -}}
    {{- $found = append $found (printf "ray-cluster.head.ports: the port named dashboard differs from rayStartParams.dashboard-port: set it to %s" $dashboard) -}}
  {{- end -}}
  {{- range $name, $parameter := dict "gcs-server" "port" "client" "ray-client-server-port" "metrics" "metrics-export-port" -}}
    {{- $wanted := include "ray-workload.startPort" (list $head $parameter 0) -}}
    {{- if not (has $wanted (list "0" (include "ray-workload.headPort" (list $ $name 0)))) -}}
      {{- $found = append $found (printf "ray-cluster.head.ports has no port named %s with the number %s of rayStartParams.%s: add {name: %s, containerPort: %s}" $name $wanted $parameter $name $wanted) -}}
    {{- end -}}
  {{- end -}}
{{- else -}}
  {{- $found = append $found "ray-cluster.head.ports is empty: add {name: dashboard, containerPort: 8265} and the other ports of values.yaml" -}}
{{- end -}}
{{- if and .Values.serviceAccounts.head.create (ne $head.serviceAccountName .Values.serviceAccounts.head.name) -}}
  {{- $found = append $found (printf "ray-cluster.head.serviceAccountName is %q, but serviceAccounts.head.name is %q: use the same name in both, or set serviceAccounts.head.create=false" $head.serviceAccountName .Values.serviceAccounts.head.name) -}}
{{- end -}}
{{- if $head.enableInTreeAutoscaling -}}
  {{- $mounts := list -}}
  {{- range dig "autoscalerOptions" "volumeMounts" list $head }}{{ $mounts = append $mounts .name }}{{ end -}}
  {{- $volumes := list -}}
  {{- range $head.volumes }}{{ $volumes = append $volumes .name }}{{ end -}}
  {{- if and .Values.serviceAccounts.head.create (not (and (has "api-token" $mounts) (has "api-token" $volumes))) -}}
    {{- $found = append $found "ray-cluster.head.enableInTreeAutoscaling is true, but the autoscaler has no API token: copy the volume api-token from values.yaml to ray-cluster.head.volumes and its mount to ray-cluster.head.autoscalerOptions.volumeMounts" -}}
  {{- end -}}
  {{- if and (eq "v2" (dig "autoscalerOptions" "version" "v1" $head)) (not (has ($head.restartPolicy | default "") (list "" "Never"))) -}}
    {{- $found = append $found (printf "ray-cluster.head.restartPolicy is %s, but the autoscaler v2 requires Never: set it to Never or remove it" $head.restartPolicy) -}}
  {{- end -}}
{{- end -}}
{{- if and $ray.gcsFaultTolerance.enabled (not $ray.gcsFaultTolerance.redisAddress) -}}
  {{- $found = append $found "ray-cluster.gcsFaultTolerance.enabled is true, but ray-cluster.gcsFaultTolerance.redisAddress is missing: set it, e.g. to redis:6379" -}}
{{- end -}}
{{- if dig "redisPassword" "value" "" $ray.gcsFaultTolerance -}}
  {{- $found = append $found "ray-cluster.gcsFaultTolerance.redisPassword contains the password in plain text: refer to a Secret with valueFrom.secretKeyRef instead" -}}
{{- end -}}
{{- if and .Values.api.nodePort (ne .Values.api.type "NodePort") -}}
  {{- $found = append $found (printf "api.nodePort is set, but api.type is %s: set api.type=NodePort" .Values.api.type) -}}
{{- end -}}
{{- if and .Values.metrics.podMonitor.enabled .Values.metrics.podMonitoring.enabled -}}
  {{- $found = append $found "metrics.podMonitor and metrics.podMonitoring are both enabled, which collects metrics twice: disable one" -}}
{{- end -}}
{{ toJson $found }}
{{- end -}}

{{- define "ray-workload.mistakes.auth" -}}
{{- $found := list -}}
{{- $secret := include "ray-workload.authSecret" . -}}
{{- $ray := index .Values "ray-cluster" -}}
{{- if not (regexMatch "^[!-~]*$" (trim .Values.auth.token)) -}}
  {{- $found = append $found "auth.token contains characters that are not allowed: use printable ASCII without spaces, on one line" -}}
{{- end -}}
{{- $groups := dict "ray-cluster.head" $ray.head -}}
{{- range $name, $group := include "ray-workload.groups" . | fromYaml -}}
  {{- $_ := set $groups (include "ray-workload.groupPath" (list $ $name)) $group -}}
{{- end -}}
{{- range $where, $group := $groups -}}
  {{- range $group.containerEnv -}}
    {{- if has .name (list "RAY_AUTH_MODE" "RAY_AUTH_TOKEN") -}}
      {{- $found = append $found (printf "%s.containerEnv contains %s, which is allowed only in ray-cluster.common.containerEnv: remove it" $where .name) -}}
    {{- end -}}
  {{- end -}}
{{- end -}}
{{- if and .Values.auth.token .Values.auth.existingSecret -}}
  {{- $found = append $found "auth.token and auth.existingSecret are both set: keep one" -}}
{{- end -}}
{{- $lists := dict "ray-cluster.common.containerEnv" $ray.common.containerEnv -}}
{{- if $ray.head.enableInTreeAutoscaling -}}
  {{- $_ := set $lists "ray-cluster.head.autoscalerOptions.env" (dig "autoscalerOptions" "env" list $ray.head) -}}
{{- end -}}
{{- range $where, $env := $lists -}}
  {{- $mode := "" }}{{ $from := dict -}}
  {{- range $env -}}
    {{- if eq .name "RAY_AUTH_MODE" }}{{ $mode = .value }}{{ end -}}
    {{- if eq .name "RAY_AUTH_TOKEN" }}{{ $from = dig "valueFrom" "secretKeyRef" dict . }}{{ end -}}
    {{- if and (eq .name "RAY_AUTH_TOKEN") .value }}{{ $found = append $found (printf "%s contains the token in plain text: refer to a Secret with valueFrom.secretKeyRef instead" $where) }}{{ end -}}
  {{- end -}}
  {{- if $.Values.auth.enabled -}}
    {{- if ne $mode "token" -}}
      {{- $found = append $found (printf "auth.enabled is true, but %s does not set RAY_AUTH_MODE to token: add {name: RAY_AUTH_MODE, value: token}" $where) -}}
    {{- end -}}
    {{- if or (ne $secret ($from.name | default "")) (ne "auth_token" ($from.key | default "")) -}}
      {{- $found = append $found (printf "auth.enabled is true, but %s does not set RAY_AUTH_TOKEN from the Secret %s: add {name: RAY_AUTH_TOKEN, valueFrom: {secretKeyRef: {name: %s, key: auth_token}}}" $where $secret $secret) -}}
    {{- end -}}
  {{- else if or (eq $mode "token") $from -}}
    {{- $found = append $found (printf "auth.enabled is false, but %s still configures the token: set RAY_AUTH_MODE to disabled and remove RAY_AUTH_TOKEN" $where) -}}
  {{- end -}}
{{- end -}}
{{ toJson $found }}
{{- end -}}

{{- define "ray-workload.mistakes.group" -}}
{{- $found := list -}}
{{- $ray := index .context.Values "ray-cluster" -}}
{{- $account := .context.Values.serviceAccounts.worker -}}
{{- $isWorker := eq .name $ray.worker.groupName -}}
{{- $where := include "ray-workload.groupPath" (list .context .name) -}}
{{- if include "ray-workload.misread" .name -}}
  {{- $found = append $found (printf "%s: the group name is %q, which YAML reads as a number or a keyword: choose another name" $where .name) -}}
{{- end -}}
{{- if or (not (regexMatch "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$" .name)) (gt (len .name) 63) -}}
  {{- $found = append $found (printf "%s: the group name %q must have at most 63 characters, contain only a-z, 0-9 and -, and not start or end with -: rename the group" $where .name) -}}
{{- end -}}
{{- if and $isWorker (not $ray.worker.disabled) (hasKey ($ray.additionalWorkerGroups | default dict) .name) -}}
  {{- $found = append $found (printf "ray-cluster.additionalWorkerGroups.%s has the same name as ray-cluster.worker.groupName: rename one" .name) -}}
{{- end -}}
{{- $replicas := int .group.replicas -}}
{{- $min := int (.group.minReplicas | default 0) -}}
{{- if and $ray.head.enableInTreeAutoscaling (ne $replicas $min) -}}
  {{- $found = append $found (printf "%s: replicas is %d, but minReplicas is %d: with the autoscaler, use the same number in both, because an upgrade resets the group to replicas" $where $replicas $min) -}}
{{- else if or (lt $replicas $min) (gt $replicas (int (.group.maxReplicas | default 2147483647))) -}}
  {{- $found = append $found (printf "%s.replicas is %d: set it to a number from minReplicas to maxReplicas" $where $replicas) -}}
{{- end -}}
{{- if and $account.create (ne $account.name (.group.serviceAccountName | default "")) -}}
  {{- $found = append $found (printf "%s.serviceAccountName is %q, but serviceAccounts.worker.name is %q: use the same name in both, or set serviceAccounts.worker.create=false" $where (.group.serviceAccountName | default "") $account.name) -}}
{{- end -}}
{{ toJson $found }}
{{- end -}}

{{- define "ray-workload.mistakes.secrets" -}}
{{- $found := list -}}
{{- $groups := include "ray-workload.groups" . | fromYaml -}}
{{- range $name, $secret := .Values.secrets -}}
  {{- $real := $secret.existingSecret | default $name -}}
  {{- if and $secret.existingSecret $secret.data -}}
    {{- $found = append $found (printf "secrets.%s sets both data and existingSecret: keep one" $name) -}}
  {{- else if not (or $secret.existingSecret $secret.data) -}}
    {{- $found = append $found (printf "secrets.%s sets neither data nor existingSecret: set one" $name) -}}
  {{- end -}}
  {{- if eq $name (include "ray-workload.authSecret" $) -}}
    {{- $found = append $found (printf "secrets.%s has the same name as the Secret of the token: rename it" $name) -}}
  {{- end -}}
  {{- $mounts := dict "ray-cluster.head" (index $.Values "ray-cluster" "head") -}}
  {{- range $group, $values := $groups -}}
    {{- $_ := set $mounts (include "ray-workload.groupPath" (list $ $group)) $values -}}
  {{- end -}}
  {{- range $where, $values := $mounts -}}
    {{- $volumes := list -}}
    {{- range $volume := $values.volumes -}}
      {{- range prepend (dig "projected" "sources" list $volume) $volume -}}
        {{- if has $real (list (dig "secret" "secretName" "" .) (dig "secret" "name" "" .)) }}{{ $volumes = append $volumes $volume.name }}{{ end -}}
      {{- end -}}
    {{- end -}}
    {{- $mounted := false -}}
    {{- range $values.volumeMounts }}{{ if has .name $volumes }}{{ $mounted = true }}{{ end }}{{ end -}}
    {{- if not $volumes -}}
      {{- $found = append $found (printf "secrets.%s is not mounted: add {name: %s, secret: {secretName: %s, defaultMode: 0440}} to %s.volumes and {name: %s, mountPath: ..., readOnly: true} to %s.volumeMounts" $name $real $real $where $real $where) -}}
    {{- else if not $mounted -}}
      {{- $found = append $found (printf "secrets.%s is not mounted: add {name: %s, mountPath: ..., readOnly: true} to %s.volumeMounts" $name (first $volumes) $where) -}}
    {{- end -}}
  {{- end -}}
{{- end -}}
{{ toJson $found }}
{{- end -}}
