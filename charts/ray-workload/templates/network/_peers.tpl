{{/* Who can connect to the dashboard and the agents. */}}
{{- define "ray-workload.clientPeers" -}}
- podSelector:
    matchLabels:
      ray-workload/client: "true"
# the submitters of RayJobs in K8sJobMode
- podSelector:
    matchLabels:
      app.kubernetes.io/created-by: kuberay-operator
      ray.io/originated-from-crd: RayJob
# operators, which submit RayJobs in HTTPMode and deploy RayServices
- namespaceSelector: {}
  podSelector:
    matchLabels:
      app.kubernetes.io/name: kuberay-operator
{{- with .Values.networkPolicy.apiServerFrom }}
# the API server's proxy
{{ toYaml . }}
{{- end }}
{{- end -}}
