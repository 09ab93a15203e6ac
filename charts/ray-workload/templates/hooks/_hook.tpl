{{/* The metadata of every object of a hook. Takes (dict "context" $ "name" NAME "hook" EVENTS "weight" N). */}}
{{- define "ray-workload.hookMetadata" -}}
metadata:
  name: {{ .name }}
  namespace: {{ .context.Release.Namespace }}
  labels:
    {{- include "ray-workload.labels" .context | nindent 4 }}
  annotations:
    helm.sh/hook: {{ .hook }}
    helm.sh/hook-weight: {{ .weight | quote }}
    helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end -}}

{{- define "ray-workload.hookAccount" -}}
apiVersion: v1
kind: ServiceAccount
{{ include "ray-workload.hookMetadata" (merge (dict "weight" "0") .) }}
automountServiceAccountToken: false
{{- end -}}

{{- define "ray-workload.hookBinding" -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
{{ include "ray-workload.hookMetadata" (merge (dict "weight" "0") .) }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: Role
  name: {{ .name }}
subjects:
  - kind: ServiceAccount
    name: {{ .name }}
    namespace: {{ .context.Release.Namespace }}
{{- end -}}

{{/* A Job that runs files/hooks.py. Also takes "args" and "seconds", the deadline of the Job. */}}
{{- define "ray-workload.hookJob" -}}
apiVersion: batch/v1
kind: Job
{{ include "ray-workload.hookMetadata" (merge (dict "weight" "1") .) }}
spec:
  backoffLimit: 3
  activeDeadlineSeconds: {{ .seconds }}
  template:
    metadata:
      labels:
        {{- include "ray-workload.labels" .context | nindent 8 }}
    spec:
      serviceAccountName: {{ .name }}
      automountServiceAccountToken: true
      {{- include "ray-workload.scriptPod" (dict "context" .context "script" "files/hooks.py" "args" .args) | nindent 6 }}
{{- end -}}
