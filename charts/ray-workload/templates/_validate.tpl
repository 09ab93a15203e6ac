{{/* A JSON list of the mistakes that the schema cannot detect, each with its fix. validate.yaml reports them. */}}
{{- define "ray-workload.mistakes" -}}
{{- $found := list -}}
{{- $operator := index .Values "kuberay-operator" -}}
{{- $ray := index .Values "ray-cluster" -}}
{{- if $operator.enabled -}}
  {{- if and (gt (int $operator.replicas) 1) (not $operator.leaderElectionEnabled) }}{{ $found = append $found "kuberay-operator.replicas is more than 1: set kuberay-operator.leaderElectionEnabled=true" }}{{ end -}}
  {{- if and $operator.watchNamespace (not (has .Release.Namespace $operator.watchNamespace)) $ray.enabled }}{{ $found = append $found (printf "kuberay-operator.watchNamespace does not contain the namespace of the release: add %s" .Release.Namespace) }}{{ end -}}
  {{- if not $operator.singleNamespaceInstall -}}
    {{- range dig "items" list (lookup "apps/v1" "Deployment" "" "" | default dict) -}}
      {{- if and (eq "kuberay-operator" (dig "metadata" "labels" "app.kubernetes.io/name" "" .)) (ne (printf "%s/%s" $.Release.Namespace $.Release.Name) (printf "%s/%s" .metadata.namespace (dig "metadata" "annotations" "meta.helm.sh/release-name" "" .))) }}{{ $found = append $found (printf "a KubeRay operator is already running in namespace %s: set kuberay-operator.enabled=false to use it" .metadata.namespace) }}{{ end -}}
    {{- end -}}
  {{- end -}}
{{- else if not $ray.enabled -}}
  {{- $found = append $found "kuberay-operator.enabled and ray-cluster.enabled are both false: enable at least one" -}}
{{- end -}}
{{- if $ray.enabled -}}
{{- $given := $ray.given -}}
{{- $groups := include "ray-workload.groups" . | fromJson -}}
{{- /* the cluster */ -}}
{{- $cluster := include "ray-workload.cluster" . -}}
{{- if or (gt (len $cluster) 53) (not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $cluster)) }}{{ $found = append $found (printf "the cluster name %s must have at most 53 characters, start with a letter, contain only a-z, 0-9 and -, and not end with -: set ray-cluster.fullnameOverride" $cluster) }}{{ end -}}
{{- /* The upstream chart does not quote names. */ -}}
{{- range $what, $name := dict "the release name" .Release.Name "the namespace" .Release.Namespace "the cluster name" $cluster "serviceAccounts.head.name" (include "ray-workload.account" (list . "head")) "serviceAccounts.worker.name" (include "ray-workload.account" (list . "worker")) -}}
  {{- if include "ray-workload.misread" $name }}{{ $found = append $found (printf "%s is %q, which YAML reads as a number or a keyword: choose another name" $what $name) }}{{ end -}}
{{- end -}}
{{- $version := include "ray-workload.rayVersion" . -}}
{{- $tag := regexFind "^[0-9]+\\.[0-9]+\\.[0-9]+" $ray.head.image.tag -}}
{{- if not $version -}}
  {{- $found = append $found (printf "the image tag %s does not start with a Ray version: set rayVersion, e.g. to 2.60.0" $ray.head.image.tag) -}}
{{- else if and $tag (hasPrefix "rayproject/" $ray.head.image.repository) (not (hasPrefix $tag $version)) -}}
  {{- $found = append $found (printf "rayVersion is %s, but the image tag is %s: remove rayVersion, or correct it" $version $ray.head.image.tag) -}}
{{- else if and .Values.auth.enabled (semverCompare "<2.52.0-0" (regexFind "^[0-9]+\\.[0-9]+\\.[0-9]+" $version | default "0.0.0")) -}}
  {{- $found = append $found (printf "Ray %s does not support token authentication: use Ray 2.52.0 or later, set rayVersion if the image has it, or set auth.enabled=false" $version) -}}
{{- end -}}
{{- range include "ray-workload.headPorts" $ray.head | fromJsonArray -}}
  {{- $number := include "ray-workload.headPort" (list $ .name) -}}
  {{- if and (has .name (list "gcs-server" "dashboard" "client" "metrics")) (ne $number (toString .containerPort)) }}{{ $found = append $found (printf "ray-cluster.head.ports: %s is %s, but Ray uses %s: remove it, and set head.rayStartParams" .name $number (toString .containerPort)) }}{{ end -}}
{{- end -}}
{{- if and .Values.autoscaling.enabled (eq "v2" $ray.head.autoscalerOptions.version) (not (has ($ray.head.restartPolicy | default "") (list "" "Never"))) }}{{ $found = append $found (printf "ray-cluster.head.restartPolicy is %s, but the autoscaler v2 requires Never: remove it" $ray.head.restartPolicy) }}{{ end -}}
{{- if and $ray.gcsFaultTolerance.enabled (or (hasKey $ray.spec "gcsFaultToleranceOptions") (not $ray.gcsFaultTolerance.redisAddress)) }}{{ $found = append $found "ray-cluster.gcsFaultTolerance is enabled without redisAddress, or beside headRecovery: use headRecovery.enabled and headRecovery.redisAddress instead" }}{{ end -}}
{{- range $where, $options := dict "ray-cluster.gcsFaultTolerance" $ray.gcsFaultTolerance "rayCluster.spec.gcsFaultToleranceOptions" $ray.spec.gcsFaultToleranceOptions }}{{ if dig "redisPassword" "value" "" ($options | default dict) }}{{ $found = append $found (printf "%s.redisPassword contains the password in plain text: set headRecovery.redisPassword.secret instead" $where) }}{{ end }}{{ end -}}
{{- range $key, $type := dict "nodePort" "NodePort" "sourceRanges" "LoadBalancer" -}}
  {{- if and (get $.Values.api $key) (ne $.Values.api.type $type) }}{{ $found = append $found (printf "api.%s is set, but api.type is %s: set api.type=%s" $key $.Values.api.type $type) }}{{ end -}}
{{- end -}}
{{- if and .Values.metrics.podMonitor.enabled .Values.metrics.podMonitoring.enabled }}{{ $found = append $found "metrics.podMonitor and metrics.podMonitoring are both enabled, which collects metrics twice: disable one" }}{{ end -}}
{{- if and .Values.networkPolicy.egress.enabled .Values.autoscaling.enabled (not (or .Values.networkPolicy.egress.apiServer .Values.networkPolicy.egress.rules)) }}{{ $found = append $found "networkPolicy.egress is enabled, but the autoscaler needs the API server: set networkPolicy.egress.apiServer to its addresses" }}{{ end -}}
{{- range $name, $value := ternary dict $ray.spec (empty $ray.known) -}}
  {{- if or (not (hasKey $ray.known $name)) (and (kindIs "map" $value) (hasKey $value "backend") (not (dig $name "properties" "backend" "" $ray.known))) }}{{ $found = append $found (printf "the RayCluster CRD of this Kubernetes is too old for %s: run `ci/upgrade-crds`, and upgrade the operator" $name) }}{{ end -}}
{{- end -}}
{{- /* the token */ -}}
{{- if not (regexMatch "^[!-~]*$" (trim .Values.auth.token)) }}{{ $found = append $found "auth.token contains characters that are not allowed: use printable ASCII without spaces, on one line" }}{{ end -}}
{{- if and .Values.auth.enabled .Values.rayCluster.checkCRD (empty $ray.known) (not (or .Values.auth.token .Values.auth.existingSecret)) }}{{ $found = append $found "helm cannot read the Kubernetes cluster here, so each render would generate another token: set auth.existingSecret or auth.token, or for a dry run, use --dry-run=server" }}{{ end -}}
{{- if and .Values.auth.token .Values.auth.existingSecret }}{{ $found = append $found "auth.token and auth.existingSecret are both set: keep one" }}{{ end -}}
{{- $env := dict "env" .Values.env "head.env" .Values.head.env "workers.env" .Values.workers.env -}}
{{- range $name, $group := .Values.workerGroups }}{{ $_ := set $env (printf "workerGroups.%s" $name) $group }}{{ end -}}
{{- range $key, $values := merge (omit $given "additionalWorkerGroups") ($given.additionalWorkerGroups | default dict) }}{{ $_ := set $env (printf "ray-cluster.%s" $key) (omit $values "sidecarContainers" "initContainers") }}{{ end -}}
{{- range $where, $values := $env -}}
  {{- with regexFind "\"RAY_AUTH_(MODE|TOKEN)\"" (toJson $values) }}{{ $found = append $found (printf "%s contains %s, which the chart sets: remove it, and use auth.existingSecret or auth.enabled=false" $where .) }}{{ end -}}
{{- end -}}
{{- if and .Values.auth.enabled (hasKey .Values.rayCluster.spec "authOptions") }}{{ $found = append $found "rayCluster.spec.authOptions is set, which the chart sets: remove it, and use auth.existingSecret or auth.enabled=false" }}{{ end -}}
{{- /* head and worker groups; first, the keys of the upstream chart that the chart's own keys replace */ -}}
{{- range $old, $new := dict "rayVersion" "rayVersion" "enableInTreeAutoscaling" "autoscaling.enabled" "autoscalerOptions" "ray-cluster.head.autoscalerOptions" "headGroupSpec" "head" "workerGroupSpecs" "workerGroups" -}}
  {{- if hasKey (omit $given.head "autoscalerOptions") $old }}{{ $found = append $found (printf "ray-cluster.head.%s is not used: set %s instead" $old $new) }}{{ end -}}
  {{- if hasKey $.Values.rayCluster.spec $old }}{{ $found = append $found (printf "rayCluster.spec.%s is not used: set %s instead" $old $new) }}{{ end -}}
{{- end -}}
{{- range $key, $default := dict "groupName" "workergroup" "replicas" 1 "minReplicas" 1 "maxReplicas" 5 "numOfHosts" "" "disabled" "" -}}
  {{- if ne (toString $default) (toString (get $given.worker $key)) }}{{ $found = append $found (printf "ray-cluster.worker.%s is not used: set it in workers or workerGroups instead" $key) }}{{ end -}}
{{- end -}}
{{- range $name, $group := $given.additionalWorkerGroups -}}
  {{- if and (not (hasKey $groups $name)) (not $group.disabled) }}{{ $found = append $found (printf "ray-cluster.additionalWorkerGroups.%s is not in workerGroups: add it there" $name) }}{{ end -}}
  {{- with keys (pick $group "replicas" "minReplicas" "maxReplicas" "numOfHosts" "disabled") }}{{ if hasKey $groups $name }}{{ $found = append $found (printf "ray-cluster.additionalWorkerGroups.%s: %s is not used: set it in workerGroups.%s instead" $name (join ", " (sortAlpha .)) $name) }}{{ end }}{{ end -}}
{{- end -}}
{{- range $name, $group := $groups -}}
  {{- if or (not (regexMatch "^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$" $name)) (include "ray-workload.misread" $name) (eq $name "head") }}{{ $found = append $found (printf "workerGroups.%s: the name must have at most 63 characters of a-z, 0-9 and -. It cannot start or end with -, or be a number, a keyword or head: rename the group" $name) }}{{ end -}}
  {{- if and $.Values.autoscaling.enabled (gt (int (ternary $group.replicas $group.minReplicas (kindIs "invalid" $group.minReplicas))) (int $group.maxReplicas)) }}{{ $found = append $found (printf "workerGroups.%s: the minimum of the replicas is more than maxReplicas, which is %d: correct one" $name (int $group.maxReplicas)) }}{{ end -}}
  {{- if and $group.spot (not $.Values.spotNodes) }}{{ $found = append $found (printf "workerGroups.%s.spot is true, but spotNodes is empty: set spotNodes to the label of spot nodes" $name) }}{{ end -}}
  {{- range $key, $value := $.Values.spotNodes -}}
    {{- if and $group.spot (not (has (get $group.nodeSelector $key) (list "" $value))) }}{{ $found = append $found (printf "workerGroups.%s.spot is true, but its nodeSelector has %s: %s: remove one" $name $key (get $group.nodeSelector $key)) }}{{ end -}}
  {{- end -}}
{{- end -}}
{{- $accounts := .Values.serviceAccounts -}}
{{- if and $accounts.head.create $accounts.worker.create (eq (include "ray-workload.account" (list . "head")) (include "ray-workload.account" (list . "worker"))) }}{{ $found = append $found (printf "serviceAccounts.head.name and serviceAccounts.worker.name are both %s: use different names, or set serviceAccounts.worker.create=false" $accounts.head.name) }}{{ end -}}
{{- /* Secrets and volumes */ -}}
{{- $nodes := append (keys $groups) "head" -}}
{{- range $name, $secret := .Values.secrets -}}
  {{- if eq (empty $secret.existingSecret) (empty $secret.data) }}{{ $found = append $found (printf "secrets.%s must have either data or existingSecret: set one of them" $name) }}{{ end -}}
  {{- if hasKey $.Values.volumes $name }}{{ $found = append $found (printf "secrets.%s and volumes.%s have the same name: rename one" $name $name) }}{{ end -}}
{{- end -}}
{{- range $name, $volume := .Values.volumes -}}
  {{- if ne 1 (len (omit $volume "mountPath" "subPath" "readOnly" "groups")) }}{{ $found = append $found (printf "volumes.%s must have exactly one source: set it, e.g. persistentVolumeClaim: {claimName: NAME}" $name) }}{{ end -}}
  {{- range $volume.groups -}}
    {{- if not (has . $nodes) }}{{ $found = append $found (printf "volumes.%s.groups contains %s, which is no worker group: use %s" $name . (join ", " (sortAlpha $nodes))) }}{{ end -}}
  {{- end -}}
{{- end -}}
{{- $embedded := eq "rocksdb" (dig "gcsFaultToleranceOptions" "backend" "" $ray.spec) -}}
{{- $reserved := list "log-volume" "api-token" "shared-mem" (ternary "gcs-storage" "log-volume" $embedded) -}}
{{- $paths := ternary (dict "head:/data/gcs" "headRecovery") dict $embedded -}}
{{- range $nodes }}{{ $_ := set $paths (printf "%s:/tmp/ray" .) "the logs of Ray" }}{{ end -}}
{{- range $kind, $all := dict "secrets" .Values.secrets "volumes" .Values.volumes -}}
  {{- range $name, $mounted := $all -}}
    {{- if has $name (append $reserved (ternary (include "ray-workload.authSecret" $) "" (eq $kind "secrets"))) }}{{ $found = append $found (printf "%s.%s has a name that the chart uses: rename it" $kind $name) }}{{ end -}}
    {{- $path := trimSuffix "/" ($mounted.mountPath | default "") -}}
    {{- range ternary ($mounted.groups | default $nodes) list (ne "" $path) -}}
      {{- with get $paths (printf "%s:%s" . $path) }}{{ $found = append $found (printf "%s.%s has the mountPath of %s: use another" $kind $name .) }}{{ end -}}
      {{- $_ := set $paths (printf "%s:%s" . $path) (printf "%s.%s" $kind $name) -}}
    {{- end -}}
  {{- end -}}
{{- end -}}
{{- $inside := not (hasPrefix "/" (.Values.outputs | default "")) -}}
{{- range .Values.volumes -}}
  {{- if and (hasPrefix (printf "%s/" (trimSuffix "/" .mountPath)) (printf "%s/" $.Values.outputs)) (not .readOnly) (eq (len $nodes) (len (uniq (.groups | default $nodes)))) }}{{ $inside = true }}{{ end -}}
{{- end -}}
{{- if not $inside }}{{ $found = append $found (printf "outputs is %s, which is in no volume that all pods can write to: add one to volumes" .Values.outputs) }}{{ end -}}
{{- end -}}
{{ uniq $found | toJson }}
{{- end -}}
